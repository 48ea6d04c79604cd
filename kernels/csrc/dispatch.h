#pragma once
// Which twin of each op runs: decided once by what this CPU can do.

#include <array>
#include <cstdint>
#include <string_view>

#include "colour.h"
#include "contour.h"
#include "denoise.h"
#include "foreground.h"
#include "gray.h"
#include "resize.h"

namespace gliofed {

// kAvx2 needs AVX2, FMA, BMI, BMI2 and POPCNT; kAvx512 also F, BW, DQ, VL, VBMI and VBMI2 (Ice Lake, Zen 4, later).
enum class Isa { kScalar, kAvx2, kAvx512 };

struct Ops {
    Isa isa;
    std::string_view name;
    decltype(&gray_scalar) gray;
    decltype(&foreground_scalar) foreground;
    decltype(&largest_contour_scalar) contour;
    decltype(&resize_scalar) resize;
    decltype(&denoise_scalar) denoise;
    decltype(&colour_scalar<float>) colour_float32;
    decltype(&colour_scalar<Bfloat16>) colour_bfloat16;

    template <class T>
    auto colour() const {
        if constexpr (sizeof(T) == sizeof(float)) {
            return colour_float32;
        } else {
            return colour_bfloat16;
        }
    }
};

// The twins in use: the fastest that this CPU carries out, unless use_isa chose others.
const Ops& ops();

bool supported(Isa isa);

// For tests and measurements. Takes effect for calls that begin later. Throws std::invalid_argument where this CPU
// does not carry it out.
void use_isa(Isa isa);

// All twins, slowest first.
const std::array<Ops, 3>& all_ops();

}  // namespace gliofed
