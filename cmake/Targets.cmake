# gradq_library(NAME SOURCES a.cc ... DEPS ...)  one per folder of lib/ or services/; DEPS repeat the include rules that
#                                                tests/lint keeps and lib/README.md draws.
# gradq_binary(NAME [CUDA] SOURCES ... DEPS ...)  lands in build/<preset>/bin.
# gradq_test(NAME [CUDA] LABEL unit SOURCES ... DEPS ... [TIMEOUT s])  one GoogleTest executable, one CTest test.
# CUDA: a build with GRADQ_CUDA differs from one without, so `scripts/build cuda` makes it. Tests get the label cuda beside
# their own (in every preset: there they check what needs no device). Binaries marked so exist only in a build with CUDA.
if(GRADQ_CUDA)
  add_custom_target(gradq_cuda_build)
endif()

function(gradq_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  if(ARG_SOURCES)
    add_library(${name} STATIC ${ARG_SOURCES})
    target_include_directories(${name} PUBLIC ${CMAKE_SOURCE_DIR})
    target_link_libraries(${name} PUBLIC ${ARG_DEPS})
  else()
    add_library(${name} INTERFACE)
    target_include_directories(${name} INTERFACE ${CMAKE_SOURCE_DIR})
    target_link_libraries(${name} INTERFACE ${ARG_DEPS})
  endif()
endfunction()

function(gradq_binary name)
  cmake_parse_arguments(ARG "CUDA" "" "SOURCES;DEPS" ${ARGN})
  if(ARG_CUDA AND NOT GRADQ_CUDA)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS})
  if(ARG_CUDA)
    add_dependencies(gradq_cuda_build ${name})
  endif()
endfunction()

# Read by the programs of the asan and tsan presets only.
set(sanitizer_environment
  ASAN_OPTIONS=allocator_may_return_null=1
  TSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/tsan.supp:halt_on_error=1)

function(gradq_test name)
  cmake_parse_arguments(ARG "CUDA" "LABEL;TIMEOUT" "SOURCES;DEPS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
  target_compile_definitions(${name} PRIVATE GRADQ_FIXTURES="${CMAKE_SOURCE_DIR}/tests/fixtures"
    GRADQ_GOLDEN="${CMAKE_SOURCE_DIR}/tests/golden" GRADQ_BIN="${CMAKE_BINARY_DIR}/bin")
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
  # One process for all cases: most of a case's time would be the loading of libtorch. GoogleTest's --gtest_filter
  # picks cases.
  add_test(NAME ${name} COMMAND ${name})
  set(labels ${ARG_LABEL})
  if(ARG_CUDA)
    list(APPEND labels cuda)
    if(GRADQ_CUDA)
      add_dependencies(gradq_cuda_build ${name})
    endif()
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${labels}" TIMEOUT ${ARG_TIMEOUT}
    ENVIRONMENT "${sanitizer_environment}")
endfunction()
