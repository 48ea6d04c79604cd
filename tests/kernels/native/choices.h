#pragma once
// Decisions read from the fuzzer's bytes, so that equal bytes always give the same case.

#include <array>
#include <cstddef>
#include <cstdint>

namespace gliofed::fuzz {

class Choices {
  public:
    Choices(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

    // When the bytes are used up, zero.
    std::uint8_t byte() { return next_ < size_ ? data_[next_++] : std::uint8_t{0}; }
    std::ptrdiff_t below(std::ptrdiff_t end) {
        const std::ptrdiff_t high = byte();
        return (high * 256 + byte()) % end;
    }
    std::ptrdiff_t between(std::ptrdiff_t first, std::ptrdiff_t last) { return first + below(last - first + 1); }
    bool yes() { return (byte() & 1) != 0; }

    template <class T, std::size_t kCount>
    T one_of(const std::array<T, kCount>& values) {
        return values[static_cast<std::size_t>(below(kCount))];
    }

    // Lengths at which vectors end early, just fit, or begin anew; else small, or anything.
    std::ptrdiff_t side(std::ptrdiff_t largest) {
        static constexpr std::array<std::ptrdiff_t, 28> kEdges{1,   2,   3,   15,  16,  17,  31,  32,  33,  47,
                                                               48,  63,  64,  65,  95,  96,  97,  127, 128, 129,
                                                               191, 192, 193, 255, 256, 257, 512, 513};
        const std::ptrdiff_t kind = below(8);
        const std::ptrdiff_t side = kind < 3   ? between(1, 20)
                                    : kind < 5 ? one_of(kEdges)
                                    : kind < 7 ? between(1, 200)
                                               : between(1, largest);
        return side < largest ? side : largest;
    }

  private:
    const std::uint8_t* data_;
    std::size_t size_;
    std::size_t next_ = 0;
};

// SplitMix64 (Steele, Lea, Flood 2014): many numbers from one.
class Noise {
  public:
    explicit Noise(std::uint64_t seed) : state_(seed) {}

    std::uint64_t next() {
        std::uint64_t z = (state_ += 0x9E3779B97F4A7C15U);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
        return z ^ (z >> 31);
    }
    std::ptrdiff_t below(std::ptrdiff_t end) { return static_cast<std::ptrdiff_t>(next() >> 33) % end; }
    std::uint8_t level(int first, int last) { return static_cast<std::uint8_t>(first + below(last - first + 1)); }

  private:
    std::uint64_t state_;
};

}  // namespace gliofed::fuzz
