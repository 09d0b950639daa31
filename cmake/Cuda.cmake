# nvcc from the wheels (scripts/setup), and libtorch's CUDA half. Included only with GRADQ_CUDA; find_package(CUDAToolkit) of
# CMake 3.25 does not know CUDA 13.
set(cuda_folder ${GRADQ_DEPS}/cuda-${GRADQ_CUDA_VERSION}/nvidia/cu13)
if(NOT EXISTS ${cuda_folder}/bin/nvcc)
  message(FATAL_ERROR "nvcc not found, run scripts/setup: ${cuda_folder}")
endif()
set(CMAKE_CUDA_COMPILER ${cuda_folder}/bin/nvcc)
set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
# Machine code for 8.x and 9.0; 80 also leaves PTX, which the driver compiles at the first launch on anything newer. PTX costs
# no compile time and a sixth of the size.
set(CMAKE_CUDA_ARCHITECTURES 80 90a-real)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY None)
set(CMAKE_CUDA_FLAGS_INIT "-L${cuda_folder}/lib")
enable_language(CUDA)

# -fmad=false is what -ffp-contract=off is for C++: a kernel that wants a fused multiply-add writes one.
add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Xcompiler=-Wall,-Wextra,-ffp-contract=off -fmad=false -Werror=all-warnings>")
# Every program holds all kernels: a third of the size for no compile time.
add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:--compress-mode=size>")

add_library(gradq_import_cudart SHARED IMPORTED)
set_target_properties(gradq_import_cudart PROPERTIES
  IMPORTED_LOCATION ${cuda_folder}/lib/libcudart.so.13
  INTERFACE_INCLUDE_DIRECTORIES ${cuda_folder}/include)

# ATen finds its CUDA kernels by static initialisers of libtorch_cuda, which nothing refers to by name. The libraries it needs
# itself (cuBLAS, cuDNN, NCCL ...) are on machines with a GPU only.
foreach(lib c10_cuda torch_cuda)
  add_library(gradq_import_${lib} SHARED IMPORTED)
  set_target_properties(gradq_import_${lib} PROPERTIES IMPORTED_LOCATION ${TORCH_DIR}/lib/lib${lib}.so)
endforeach()
# Not cudart with its headers: objects without CUDA are then the release preset's and come out of the compiler cache.
target_link_libraries(gradq_torch INTERFACE gradq_import_torch_cuda gradq_import_c10_cuda)
target_link_options(gradq_torch INTERFACE -Wl,--no-as-needed -Wl,--allow-shlib-undefined)
