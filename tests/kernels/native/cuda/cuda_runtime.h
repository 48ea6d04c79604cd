#pragma once
// Stands before CUDA's own header on the include path, so that kernel sources compile as plain C++20 and run on the
// CPU: blocks one after the other, the threads of a block as fibers of one thread that change places at barriers
// and, on request, at atomics. Only what our kernels use is here.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>

#define __global__
#define __device__
#define __shared__ static  // one block runs at a time
#define __grid_constant__
#define __launch_bounds__(threads)

using std::abs;
using std::max;
using std::min;

struct dim3 {
    unsigned x;
    unsigned y = 1;
    unsigned z = 1;
    dim3(unsigned count = 1) : x(count) {}
};

struct alignas(4) uchar4 {
    unsigned char x, y, z, w;
};

namespace emulator {

// Which fiber goes first decides what a missing barrier would let it see; kShuffled also breaks off at atomics.
enum class Order { kAscending, kDescending, kShuffled };

void use_order(Order order, std::uint64_t seed);
void run_block(unsigned num_threads, const std::function<void()>& thread);
void wait_at_barrier();
void perhaps_change_places();

}  // namespace emulator

inline dim3 threadIdx;
inline dim3 blockIdx;

inline void __syncthreads() { emulator::wait_at_barrier(); }

template <class T>
T atomicAdd(T* where, T value) {
    emulator::perhaps_change_places();
    const T before = *where;
    *where = before + value;
    return before;
}

template <class T>
T atomicMin(T* where, T value) {
    emulator::perhaps_change_places();
    const T before = *where;
    *where = std::min(before, value);
    return before;
}

template <class T>
T atomicMax(T* where, T value) {
    emulator::perhaps_change_places();
    const T before = *where;
    *where = std::max(before, value);
    return before;
}

inline int __ffs(int bits) { return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1; }
inline int __popc(unsigned bits) { return std::popcount(bits); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __double2float_rn(double a) { return static_cast<float>(a); }
inline int __float2int_rn(float a) { return static_cast<int>(std::nearbyint(a)); }
inline int __float2int_rd(float a) { return static_cast<int>(std::floor(a)); }

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
inline const char* cudaGetErrorString(cudaError_t) { return "invalid configuration argument"; }

struct cudaLaunchConfig_t {
    dim3 gridDim;
    dim3 blockDim;
    void* stream;
};

// As on a device: arguments are copied at once, and limits of the hardware are errors.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    const bool possible = config->gridDim.x >= 1 && config->gridDim.x <= 0x7FFFFFFFU && config->blockDim.x >= 1 &&
                          config->blockDim.x <= 1024 && (sizeof(Parameters) + ... + 0) <= 32764;
    if (!possible) return cudaErrorInvalidConfiguration;
    for (unsigned block = 0; block < config->gridDim.x; ++block) {
        blockIdx = dim3(block);
        emulator::run_block(config->blockDim.x, [&] { kernel(arguments...); });
    }
    return cudaSuccess;
}
