# Compiles SOURCE, and fails unless the compiler refuses it and prints every text that the file expects:
#   // expected: <text>     at least one such line; all of them must appear, as written
#   // flags: <flags>       more flags, for example -Werror=unused-result
cmake_minimum_required(VERSION 3.23)
include(${COMPILER})

file(STRINGS ${SOURCE} expectations REGEX "^// expected: .+")
if(NOT expectations)
  message(FATAL_ERROR "${SOURCE}: has no line \"// expected: <text>\"")
endif()
file(STRINGS ${SOURCE} more_flags REGEX "^// flags: ")
string(REGEX REPLACE "^// flags: " "" more_flags "${more_flags}")
separate_arguments(more_flags UNIX_COMMAND "${more_flags}")

execute_process(COMMAND ${CMAKE_COMMAND} -E env LC_ALL=C ${compiler} ${flags} ${more_flags} -fsyntax-only ${SOURCE}
  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(result EQUAL 0)
  message(FATAL_ERROR "${SOURCE}: compiles, and should not")
endif()
# The expectations are lines of the source, which a compiler may print: what it shows of them does not count.
string(REGEX REPLACE "[^\n]*// expected: [^\n]*" "" output "${output}")
foreach(expectation IN LISTS expectations)
  string(REGEX REPLACE "^// expected: " "" expectation "${expectation}")
  string(FIND "${output}" "${expectation}" position)
  if(position EQUAL -1)
    message(FATAL_ERROR "${SOURCE}: the compiler does not say\n  ${expectation}\nbut\n${output}")
  endif()
endforeach()
