from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy
from conan.tools.scm import Git
import os


class CobatchConan(ConanFile):
    name = "cobatch"
    description = "A header-only C++20 coroutine library for asynchronous batch inference"
    license = "BSL-1.0"
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    no_copy_source = True

    def layout(self):
        cmake_layout(self)

    def validate(self):
        check_min_cppstd(self, 20)

    def source(self):
        git = Git(self)
        git.clone(url="https://example.com/cobatch.git", target=".")  # the address of your copy
        git.checkout(f"v{self.version}")

    def generate(self):
        toolchain = CMakeToolchain(self)
        for part in ("TESTS", "EXAMPLES", "BENCHMARKS"):
            toolchain.cache_variables[f"COBATCH_BUILD_{part}"] = False
        toolchain.generate()

    def build(self):
        CMake(self).configure()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))

    def package_id(self):
        self.info.clear()

    def package_info(self):
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
        self.cpp_info.set_property("cmake_file_name", "cobatch")
        self.cpp_info.set_property("cmake_target_name", "cobatch::cobatch")
        self.cpp_info.set_property("pkg_config_name", "cobatch")
        if self.settings.os == "Linux":
            self.cpp_info.system_libs = ["pthread"]
