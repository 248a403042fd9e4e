# find_package(lowbit): the same resolution of dependencies as lowbit's own configure step.
include(${CMAKE_CURRENT_LIST_DIR}/lowbit_dependencies.cmake)
include(${CMAKE_CURRENT_LIST_DIR}/lowbit_isa_units.cmake)
lowbit_require(Eigen3 xsimd nlohmann_json)
include(${CMAKE_CURRENT_LIST_DIR}/lowbitTargets.cmake)
