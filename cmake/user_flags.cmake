# lowbit_user_flags(file target...): writes the flags with which a user would compile one source that links lowbit and the targets, for
# scripts that call the compiler as `g++ @file`: lowbit's headers, and its dependencies' as system headers.
function(lowbit_user_flags file)
  get_filename_component(name ${file} NAME)
  set(probe lowbit_probe_${name})
  file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/${probe}.cpp "")
  add_library(${probe} OBJECT EXCLUDE_FROM_ALL ${CMAKE_CURRENT_BINARY_DIR}/${probe}.cpp)
  target_link_libraries(${probe} PRIVATE lowbit ${ARGN})
  set(include ${PROJECT_SOURCE_DIR}/include)
  file(GENERATE OUTPUT ${file} CONTENT
    "-std=c++20\n-I${include}\n-isystem\n$<JOIN:$<FILTER:$<TARGET_PROPERTY:${probe},INCLUDE_DIRECTORIES>,EXCLUDE,^${include}$>,\n-isystem\n>\n")
endfunction()
