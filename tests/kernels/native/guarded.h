#pragma once
// Memory between pages that nobody may touch: one byte too far kills the process, whichever instruction reads it.

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

namespace gliofed::fuzz {

enum class Flush { kLeft, kRight };  // which end lies directly at a forbidden page

class Guarded {
  public:
    Guarded(std::size_t num_bytes, Flush flush, std::uint8_t fill) : num_bytes_(num_bytes) {
        const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        const std::size_t inside = (num_bytes + page - 1) / page * page;
        mapped_bytes_ = inside + 2 * page;
        void* mapped = mmap(nullptr, mapped_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) throw std::bad_alloc();
        mapped_ = static_cast<std::uint8_t*>(mapped);
        if (mprotect(mapped_ + page, inside, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
        std::memset(mapped_ + page, fill, inside);
        begin_ = mapped_ + page + (flush == Flush::kRight ? inside - num_bytes : 0);
    }
    ~Guarded() { munmap(mapped_, mapped_bytes_); }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;

    std::uint8_t* bytes() const { return begin_; }
    std::size_t size() const { return num_bytes_; }
    template <class T>
    T* as() const {
        return reinterpret_cast<T*>(begin_);
    }

  private:
    std::uint8_t* mapped_ = nullptr;
    std::uint8_t* begin_ = nullptr;
    std::size_t num_bytes_;
    std::size_t mapped_bytes_ = 0;
};

}  // namespace gliofed::fuzz
