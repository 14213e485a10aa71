# Headers alone: nothing is built, and there is nothing to debug.
set(VCPKG_BUILD_TYPE release)

vcpkg_from_git(
  OUT_SOURCE_PATH SOURCE_PATH
  URL https://example.com/cobatch.git          # the address of your copy
  REF 0000000000000000000000000000000000000000 # the commit of the tag v0.2.0
)

vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS
    -DCOBATCH_BUILD_TESTS=OFF
    -DCOBATCH_BUILD_EXAMPLES=OFF
    -DCOBATCH_BUILD_BENCHMARKS=OFF
    -DCOBATCH_INSTALL=ON
)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/cmake/cobatch)
vcpkg_fixup_pkgconfig()

file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/lib" "${CURRENT_PACKAGES_DIR}/share/licenses")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
