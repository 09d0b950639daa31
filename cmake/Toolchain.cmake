# Language level, warnings, launcher and linker.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

# The fixed order of sums is part of the contract: no contraction beyond what a kernel spells out, no fast-math.
add_compile_options(-Wall -Wextra -Werror -ffp-contract=off)

find_program(GRADQ_CCACHE ccache)
if(GRADQ_CCACHE)
  set(CMAKE_C_COMPILER_LAUNCHER ${GRADQ_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${GRADQ_CCACHE})
endif()
find_program(GRADQ_MOLD mold)
if(GRADQ_MOLD)
  add_link_options(-fuse-ld=mold)
endif()
