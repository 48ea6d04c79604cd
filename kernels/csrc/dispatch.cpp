#include "dispatch.h"

#include <atomic>
#include <stdexcept>
#include <string>

namespace gliofed {
namespace {

constexpr std::array<Ops, 3> kTwins{{
    {Isa::kScalar, "scalar", &gray_scalar, &foreground_scalar, &largest_contour_scalar, &resize_scalar,
     &denoise_scalar, &colour_scalar<float>, &colour_scalar<Bfloat16>},
    {Isa::kAvx2, "avx2", &gray_avx2, &foreground_avx2, &largest_contour_avx2, &resize_avx2,
     &denoise_avx2, &colour_avx2<float>, &colour_avx2<Bfloat16>},
    {Isa::kAvx512, "avx512", &gray_avx512, &foreground_avx512, &largest_contour_avx2, &resize_avx512,
     &denoise_avx512, &colour_avx512<float>, &colour_avx512<Bfloat16>},
}};

const Ops& twins_of(Isa isa) { return kTwins[static_cast<std::size_t>(isa)]; }

const Ops* fastest() {
    for (const Isa isa : {Isa::kAvx512, Isa::kAvx2}) {
        if (supported(isa)) return &twins_of(isa);
    }
    return &twins_of(Isa::kScalar);
}

std::atomic<const Ops*>& chosen() {
    static std::atomic<const Ops*> ops{fastest()};
    return ops;
}

}  // namespace

const Ops& ops() { return *chosen().load(std::memory_order_relaxed); }

bool supported(Isa isa) {
    switch (isa) {
        case Isa::kScalar:
            return true;
        case Isa::kAvx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                   __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
        case Isa::kAvx512:
            return supported(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
    }
    return false;
}

void use_isa(Isa isa) {
    if (!supported(isa)) throw std::invalid_argument("this CPU does not carry out " + std::string(twins_of(isa).name));
    chosen() = &twins_of(isa);
}

const std::array<Ops, 3>& all_ops() { return kTwins; }

}  // namespace gliofed
