#pragma once
// Starting a kernel, with its arguments checked by the compiler and a refusal of the runtime told in its words.

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "launch.h"

namespace gliofed::cuda {

template <class... Parameters, class... Arguments>
void start(const char* name, void (*kernel)(Parameters...), unsigned num_blocks, unsigned num_threads, Stream stream,
           Arguments&&... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(num_blocks);
    config.blockDim = dim3(num_threads);
    config.stream = stream;
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
    if (error == cudaSuccess) return;
    throw std::runtime_error("CUDA cannot start the kernel " + std::string(name) + ": " + cudaGetErrorString(error));
}

}  // namespace gliofed::cuda
