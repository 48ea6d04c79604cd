#pragma once
// What a host asks of the CUDA runtime besides starting kernels.

#include <string>

namespace gliofed::cuda {

// Empty where this process can use a GPU of compute capability 8.0 or later, else why it cannot. Needs no driver.
std::string reason_unavailable();

// Makes a device the calling thread's current one for a scope. Throws std::runtime_error with CUDA's words.
class CurrentDevice {
  public:
    explicit CurrentDevice(int device);
    ~CurrentDevice();
    CurrentDevice(const CurrentDevice&) = delete;
    CurrentDevice& operator=(const CurrentDevice&) = delete;

  private:
    int before_;
};

}  // namespace gliofed::cuda
