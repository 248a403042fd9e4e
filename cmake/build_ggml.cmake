# Builds ggml for this machine and installs it into FOLDER, from the source distribution of llama-cpp-python, which carries it: the peer
# that benchmarks/peers measures lowbit against. Some minutes; once.
include(${CMAKE_CURRENT_LIST_DIR}/pip_download.cmake)
set(version 0.3.36)
if(EXISTS ${FOLDER}/lib/cmake/ggml/ggml-config.cmake)
  return()
endif()
set(work ${FOLDER}/work)
lowbit_pip_download(${work} llama-cpp-python ${version} tar.gz "sources, about 70 MB" --no-binary llama-cpp-python)
file(GLOB source ${work}/*/vendor/llama.cpp/ggml)
if(NOT source)
  message(FATAL_ERROR "llama-cpp-python ${version} holds no ggml")
endif()
file(TOUCH ${source}/ggml.pc.in)  # the distribution leaves it out, and the install step asks for it
execute_process(COMMAND ${CMAKE_COMMAND} -S ${source} -B ${work}/build -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=${FOLDER}
                        -DCMAKE_INSTALL_LIBDIR=lib -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON -DGGML_OPENMP=OFF -DGGML_LLAMAFILE=ON
                        -DGGML_CCACHE=OFF -DGGML_BUILD_TESTS=OFF -DGGML_BUILD_EXAMPLES=OFF
                COMMAND_ERROR_IS_FATAL ANY OUTPUT_QUIET)
execute_process(COMMAND ${CMAKE_COMMAND} --build ${work}/build --parallel 2 --target install COMMAND_ERROR_IS_FATAL ANY)
file(REMOVE_RECURSE ${work})
