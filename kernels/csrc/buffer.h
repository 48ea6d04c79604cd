#pragma once
// Working memory that a batch allocates once.

#include <cstddef>
#include <memory>
#include <new>

namespace gliofed {

// Grows, never shrinks, and leaves its elements uninitialised. Elements begin on a cache line; 64 bytes before
// the first and after the last are ours too, so that whole vectors may be read and written across either end.
template <class T>
class AlignedBuffer {
  public:
    // Room for `count` elements. A pointer from an earlier call is void once a larger count was asked for.
    T* at_least(std::size_t count) {
        if (count > capacity_) {
            const std::size_t bytes = (count * sizeof(T) + 2 * kSpare + kLine - 1) / kLine * kLine;
            memory_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kLine})));
            capacity_ = count;
        }
        return data();
    }
    T* data() { return reinterpret_cast<T*>(memory_.get() + kSpare); }
    const T* data() const { return reinterpret_cast<const T*>(memory_.get() + kSpare); }

  private:
    static constexpr std::size_t kLine = 64;
    static constexpr std::size_t kSpare = 64;
    struct Free {
        void operator()(std::byte* memory) const { ::operator delete(memory, std::align_val_t{kLine}); }
    };
    std::unique_ptr<std::byte[], Free> memory_;
    std::size_t capacity_ = 0;
};

}  // namespace gliofed
