#include "device.h"

#include <cuda_runtime_api.h>

#include <stdexcept>

namespace gliofed::cuda {
namespace {

constexpr int kSmallestMajor = 8;  // Ampere; older ones have no code in this build

void require(cudaError_t error, const char* what) {
    if (error != cudaSuccess) {
        throw std::runtime_error(std::string("CUDA cannot ") + what + ": " + cudaGetErrorString(error));
    }
}

}  // namespace

std::string reason_unavailable() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) return std::string("CUDA finds no GPU: ") + cudaGetErrorString(error);
    for (int device = 0; device < count; ++device) {
        int major = 0;
        const cudaError_t asked = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
        if (asked == cudaSuccess && major >= kSmallestMajor) return "";
    }
    return "none of the " + std::to_string(count) + " GPUs has compute capability 8.0 or later";
}

CurrentDevice::CurrentDevice(int device) : before_(0) {
    require(cudaGetDevice(&before_), "tell the current device");
    require(cudaSetDevice(device), "use the device of the images");
}

CurrentDevice::~CurrentDevice() { cudaSetDevice(before_); }

}  // namespace gliofed::cuda
