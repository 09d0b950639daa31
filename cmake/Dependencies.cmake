# Debian packages, and libtorch from the PyPI wheel that scripts/setup unpacked below GRADQ_DEPS.
set(GRADQ_TORCH_VERSION 2.11.0)
set(GRADQ_CUDA_VERSION 13.0.88)

if(DEFINED ENV{GRADQ_DEPS})
  set(GRADQ_DEPS $ENV{GRADQ_DEPS})
else()
  set(GRADQ_DEPS $ENV{HOME}/.cache/gradq)
endif()

find_package(Threads REQUIRED)
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(absl CONFIG REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(CLI11 CONFIG REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(yaml-cpp CONFIG REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_package(hwy CONFIG REQUIRED)
find_package(GTest CONFIG REQUIRED)
find_package(benchmark CONFIG REQUIRED)
# The fibers of tests/simt.
find_package(Boost 1.74 REQUIRED COMPONENTS context)
find_package(PkgConfig REQUIRED)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(httplib REQUIRED IMPORTED_TARGET cpp-httplib)
find_package(SQLite3 REQUIRED)

# SOCI ships no CMake config in Debian 12.
find_path(SOCI_INCLUDE_DIR soci/soci.h REQUIRED)
find_library(SOCI_CORE soci_core REQUIRED)
find_library(SOCI_SQLITE3 soci_sqlite3 REQUIRED)
add_library(gradq_soci INTERFACE)
target_include_directories(gradq_soci SYSTEM INTERFACE ${SOCI_INCLUDE_DIR} ${SOCI_INCLUDE_DIR}/soci)
target_link_libraries(gradq_soci INTERFACE ${SOCI_CORE} ${SOCI_SQLITE3} SQLite::SQLite3)

set(TORCH_DIR ${GRADQ_DEPS}/torch-${GRADQ_TORCH_VERSION}/torch)
if(NOT EXISTS ${TORCH_DIR}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "libtorch not found, run scripts/setup: ${TORCH_DIR}")
endif()
foreach(lib c10 torch_cpu)
  add_library(gradq_import_${lib} SHARED IMPORTED)
  set_target_properties(gradq_import_${lib} PROPERTIES IMPORTED_LOCATION ${TORCH_DIR}/lib/lib${lib}.so)
endforeach()

# -idirafter: the wheel carries its own fmt and protobuf headers, which must not shadow Debian's.
add_library(gradq_torch INTERFACE)
target_compile_options(gradq_torch INTERFACE
  -idirafter${TORCH_DIR}/include -idirafter${TORCH_DIR}/include/torch/csrc/api/include
  $<$<COMPILE_LANGUAGE:CXX>:-Wno-unused-parameter>)
target_compile_definitions(gradq_torch INTERFACE AT_PER_OPERATOR_HEADERS)
target_link_libraries(gradq_torch INTERFACE gradq_import_torch_cpu gradq_import_c10)
