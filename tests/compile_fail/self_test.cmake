# Tests check.cmake itself, with files written into DIRECTORY.
cmake_minimum_required(VERSION 3.23)

function(check_must verdict name content)
  file(WRITE ${DIRECTORY}/${name}.cpp "${content}")
  execute_process(
    COMMAND ${CMAKE_COMMAND} -D COMPILER=${COMPILER} -D SOURCE=${DIRECTORY}/${name}.cpp
            -P ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/check.cmake
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(verdict STREQUAL "pass" AND NOT result EQUAL 0)
    message(SEND_ERROR "${name} should have passed:\n${output}")
  elseif(verdict STREQUAL "fail" AND result EQUAL 0)
    message(SEND_ERROR "${name} should have failed")
  endif()
endfunction()

check_must(pass refused
  "// expected: no way, [not] \"here\"\nstatic_assert(sizeof(int) == 0, \"no way, [not] \\\"here\\\"\");\n")
check_must(pass refused_template
  "// expected: only pointers\ntemplate <class T> struct s { static_assert(sizeof(T) == 0, \"only pointers\"); };\ns<int> x;\n")
check_must(pass refused_in_function_template
  "// expected: only pointers\ntemplate <class T> void f() { static_assert(sizeof(T) == 0, \"only pointers\"); }\nvoid g() { f<int>(); }\n")
check_must(pass refused_by_flag
  "// expected: unused\n// flags: -Wall -Werror=unused-result\n[[nodiscard]] int f();\nvoid g() { f(); }\n")
check_must(fail compiles "// expected: no way\nint x;\n")
check_must(fail other_message "// expected: no way\nstatic_assert(sizeof(int) == 0, \"something else\");\n")
check_must(fail second_message_missing
  "// expected: no way\n// expected: and more\nstatic_assert(sizeof(int) == 0, \"no way\");\n")
check_must(fail no_expectation "static_assert(sizeof(int) == 0, \"no way\");\n")
