# Downloads one file of a PyPI package into WORK, an empty folder that is made for it, and unpacks it there. `ending` is that of the file's
# name, `about` its size, for people; further arguments go to pip.
function(lowbit_pip_download work package version ending about)
  find_program(python NAMES python3 python REQUIRED)
  file(REMOVE_RECURSE ${work})
  file(MAKE_DIRECTORY ${work})
  message(STATUS "Downloading ${package} ${version} (${about}) ...")
  execute_process(COMMAND ${python} -m pip download --quiet --no-deps ${ARGN} --dest ${work} ${package}==${version} RESULT_VARIABLE code)
  file(GLOB archive ${work}/*.${ending})
  if(NOT code EQUAL 0 OR NOT archive)
    message(FATAL_ERROR "the package ${package} ${version} could not be downloaded with pip (is python3-pip installed, and PyPI reachable?)")
  endif()
  file(ARCHIVE_EXTRACT INPUT ${archive} DESTINATION ${work})
endfunction()
