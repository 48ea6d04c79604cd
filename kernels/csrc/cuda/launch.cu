#include "launch.h"

#include <algorithm>

#include "kernels.h"
#include "pipeline.h"
#include "start.h"

namespace gliofed::cuda {
namespace {

constexpr std::size_t kTasksPerStart = 32;

struct TaskGroup {
    ImageTask tasks[kTasksPerStart];
};

// Arguments of a kernel are copied when it is started: the only way to the device that never needs the host to
// keep a buffer, or wait for one. 32 tasks stay below the classic limit of 4 KiB.
__global__ void store_tasks_kernel(const __grid_constant__ TaskGroup group, int count, ImageTask* tasks) {
    const int i = static_cast<int>(threadIdx.x);
    if (i < count) tasks[i] = group.tasks[i];
}

void store_tasks(const Plan& plan, Stream stream) {
    for (std::size_t i = 0; i < plan.tasks.size(); i += kTasksPerStart) {
        const std::size_t count = std::min(kTasksPerStart, plan.tasks.size() - i);
        TaskGroup group{};
        std::copy_n(plan.tasks.begin() + static_cast<std::ptrdiff_t>(i), count, group.tasks);
        start("store_tasks", store_tasks_kernel, 1, kTasksPerStart, stream, group, static_cast<int>(count),
              plan.device_tasks + i);
    }
}

void start_crops(const Plan& plan, std::uint8_t* crops, DeviceBox* boxes, Stream stream) {
    const int num_images = static_cast<int>(plan.tasks.size());
    store_tasks(plan, stream);
    start_foreground(plan.device_tasks, num_images, plan.num_tiles, stream);
    start_contour(plan.device_tasks, boxes, num_images, stream);
    start_crop(plan.device_tasks, boxes, crops, num_images, stream);
}

void check_crops(const std::uint8_t* crops, std::size_t num_images) {
    if (num_images > kMaxImages) {
        throw std::invalid_argument("batch has " + std::to_string(num_images) + " crops, expected at most " +
                                    std::to_string(kMaxImages) + "; cut it into smaller ones");
    }
    if (reinterpret_cast<std::uintptr_t>(crops) % 4 != 0) {
        throw std::invalid_argument("crops must begin at a multiple of 4 bytes");
    }
}

template <class T>
void finish(const std::uint8_t* crops, bool denoise, std::size_t num_images, const Normalisation& normalisation,
            T* out, std::ptrdiff_t side, Stream stream) {
    check_output_side(side);
    if (num_images == 0) return;
    check_crops(crops, num_images);
    start_finish(crops, denoise, LevelTables<T>(normalisation), out, static_cast<int>(side),
                 static_cast<int>(num_images), stream);
}

}  // namespace

void crop_batch(std::span<const ImageView> images, std::uint8_t* crops, DeviceBox* boxes, void* workspace,
                Stream stream) {
    if (images.empty()) return;
    start_crops(make_plan(images, workspace), crops, boxes, stream);
}

void denoise_batch(const std::uint8_t* crops, std::size_t num_images, std::uint8_t* smooth, Stream stream) {
    if (num_images == 0) return;
    check_crops(crops, num_images);
    start_denoise(crops, smooth, static_cast<int>(num_images), stream);
}

template <class T>
void colour_batch(const std::uint8_t* smooth, std::size_t num_images, const Normalisation& normalisation, T* out,
                  std::ptrdiff_t side, Stream stream) {
    finish(smooth, false, num_images, normalisation, out, side, stream);
}

template <class T>
void finish_batch(const std::uint8_t* crops, std::size_t num_images, const Normalisation& normalisation, T* out,
                  std::ptrdiff_t side, Stream stream) {
    finish(crops, true, num_images, normalisation, out, side, stream);
}

template <class T>
void preprocess_batch(std::span<const ImageView> images, const Normalisation& normalisation, T* out,
                      DeviceBox* boxes, std::ptrdiff_t side, void* workspace, Stream stream) {
    check_output_side(side);
    if (images.empty()) return;
    const Plan plan = make_plan(images, workspace);
    start_crops(plan, plan.crops, boxes, stream);
    finish_batch(plan.crops, images.size(), normalisation, out, side, stream);
}

template void colour_batch(const std::uint8_t*, std::size_t, const Normalisation&, float*, std::ptrdiff_t, Stream);
template void colour_batch(const std::uint8_t*, std::size_t, const Normalisation&, Bfloat16*, std::ptrdiff_t, Stream);
template void finish_batch(const std::uint8_t*, std::size_t, const Normalisation&, float*, std::ptrdiff_t, Stream);
template void finish_batch(const std::uint8_t*, std::size_t, const Normalisation&, Bfloat16*, std::ptrdiff_t, Stream);
template void preprocess_batch(std::span<const ImageView>, const Normalisation&, float*, DeviceBox*, std::ptrdiff_t,
                               void*, Stream);
template void preprocess_batch(std::span<const ImageView>, const Normalisation&, Bfloat16*, DeviceBox*,
                               std::ptrdiff_t, void*, Stream);

}  // namespace gliofed::cuda
