# Read by ctest: makes each TEST_CASE of `program` a test. Sets in: name, program, list, labels, timeout.
# (Catch2's own script for version 2 loses every test after a name with an unbalanced bracket, without a word.)
if(NOT EXISTS "${program}")
  add_test("${name}: is not built" "${program}")
  return()
endif()

execute_process(COMMAND "${program}" ${list} OUTPUT_VARIABLE names ERROR_VARIABLE errors)
if(NOT names)
  message("${program} lists no tests: ${errors}")
  add_test("${name}: lists no tests" "${program}.lists_no_tests")
  return()
endif()

# No CMake list here: a semicolon or a bracket in a test's name would break it.
while(names MATCHES "^([^\n]*)\n")
  set(test "${CMAKE_MATCH_1}")
  string(LENGTH "${CMAKE_MATCH_0}" length)
  string(SUBSTRING "${names}" ${length} -1 names)
  if(test STREQUAL "")
    continue()
  endif()
  # What Catch2 would read as more than a name is escaped. A name that still matches no test is a failure.
  string(REGEX REPLACE "([][\\,\"*~])" "\\\\\\1" pattern "${test}")
  add_test("${test}" "${program}" "${pattern}" --warn NoTests)
  set_tests_properties("${test}" PROPERTIES LABELS "${labels}" TIMEOUT "${timeout}")
endwhile()
