// Runs the kernels on the CPU for tests/kernels/test_cuda_emulated.py: a request on stdin, the results on stdout.
// Every image lies in a heap block of its own, so that the address sanitizer sees reads beside it.

#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "pipeline.h"

namespace {

using gliofed::ImageView;
using gliofed::cuda::DeviceBox;

void read_bytes(void* to, std::size_t count) {
    if (std::fread(to, 1, count, stdin) != count) throw std::runtime_error("the request ends early");
}

template <class T>
T read() {
    T value;
    read_bytes(&value, sizeof value);
    return value;
}

template <class T>
void write(const std::vector<T>& values) {
    if (values.empty()) return;
    std::fwrite(values.data(), sizeof(T), values.size(), stdout);
}

struct Batch {
    std::vector<std::unique_ptr<std::uint8_t[]>> memory;
    std::vector<ImageView> images;
};

// Rows lie `row_stride` bytes apart, backwards where it is negative.
Batch read_batch(bool with_pixels) {
    Batch batch;
    const auto count = read<std::int64_t>();
    for (std::int64_t i = 0; i < count; ++i) {
        const auto height = read<std::int64_t>();
        const auto width = read<std::int64_t>();
        const auto row_stride = read<std::int64_t>();
        const auto channels = static_cast<int>(read<std::int64_t>());
        const auto order = read<std::int64_t>() != 0 ? gliofed::ChannelOrder::kBgr : gliofed::ChannelOrder::kRgb;
        const std::int64_t first = row_stride < 0 ? -row_stride * (height - 1) : 0;
        const std::int64_t num_bytes =
            with_pixels ? std::abs(row_stride) * (height - 1) + width * channels : first + 1;
        auto& memory = batch.memory.emplace_back(new std::uint8_t[static_cast<std::size_t>(num_bytes)]);
        if (with_pixels) read_bytes(memory.get(), static_cast<std::size_t>(num_bytes));
        batch.images.push_back({memory.get() + first, height, width, row_stride, channels, order});
    }
    return batch;
}

gliofed::Normalisation read_normalisation() {
    gliofed::Normalisation normalisation{};
    for (int& channel : normalisation.channel) channel = static_cast<int>(read<std::int64_t>());
    normalisation.scale = read<float>();
    for (float& mean : normalisation.mean) mean = read<float>();
    for (float& stddev : normalisation.stddev) stddev = read<float>();
    return normalisation;
}

struct Workspace {
    explicit Workspace(std::size_t bytes)
        : memory(::operator new(bytes, std::align_val_t{gliofed::cuda::kWorkspaceAlignment})) {}
    ~Workspace() { ::operator delete(memory, std::align_val_t{gliofed::cuda::kWorkspaceAlignment}); }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    void* memory;
};

void crop() {
    const Batch batch = read_batch(true);
    const Workspace workspace(gliofed::cuda::workspace_bytes(batch.images));
    std::vector<std::uint8_t> crops(batch.images.size() * gliofed::kCropPixels);
    std::vector<DeviceBox> boxes(batch.images.size());
    gliofed::cuda::crop_batch(batch.images, crops.data(), boxes.data(), workspace.memory, nullptr);
    write(boxes);
    write(crops);
}

template <class T>
T* allocate(std::vector<std::unique_ptr<std::byte[]>>& memory, std::int64_t count) {
    memory.emplace_back(new std::byte[static_cast<std::size_t>(count) * sizeof(T)]);
    return reinterpret_cast<T*>(memory.back().get());
}

// Each part of the workspace in a heap block of its own: one run or component more than planned is an error.
void crop_in_parts() {
    const Batch batch = read_batch(true);
    gliofed::cuda::Plan plan = gliofed::cuda::make_plan(batch.images, nullptr);
    std::vector<std::unique_ptr<std::byte[]>> parts;
    for (gliofed::cuda::ImageTask& task : plan.tasks) {
        task.mask = allocate<std::uint32_t>(parts, std::int64_t{task.height} * task.words_per_row);
        task.nodes = allocate<std::int32_t>(parts, gliofed::cuda::max_nodes(task.height, task.width));
        task.row_starts = allocate<std::int32_t>(parts, std::int64_t{task.height} + 1);
        task.components =
            allocate<gliofed::cuda::Component>(parts, gliofed::cuda::max_components(task.height, task.width));
    }
    const auto num_images = static_cast<int>(plan.tasks.size());
    std::vector<std::uint8_t> crops(batch.images.size() * gliofed::kCropPixels);
    std::vector<DeviceBox> boxes(batch.images.size());
    gliofed::cuda::start_foreground(plan.tasks.data(), num_images, plan.num_tiles, nullptr);
    gliofed::cuda::start_contour(plan.tasks.data(), boxes.data(), num_images, nullptr);
    gliofed::cuda::start_crop(plan.tasks.data(), boxes.data(), crops.data(), num_images, nullptr);
    write(boxes);
    write(crops);
}

template <class T>
void preprocess() {
    const auto side = read<std::int64_t>();
    const gliofed::Normalisation normalisation = read_normalisation();
    const Batch batch = read_batch(true);
    const Workspace workspace(gliofed::cuda::workspace_bytes(batch.images));
    std::vector<DeviceBox> boxes(batch.images.size());
    std::vector<T> out(batch.images.size() * 3 * static_cast<std::size_t>(side * side));
    gliofed::cuda::preprocess_batch(batch.images, normalisation, out.data(), boxes.data(), side, workspace.memory,
                                    nullptr);
    write(boxes);
    write(out);
}

void denoise() {
    const auto count = static_cast<std::size_t>(read<std::int64_t>());
    std::vector<std::uint8_t> crops(count * gliofed::kCropPixels);
    read_bytes(crops.data(), crops.size());
    std::vector<std::uint8_t> smooth(crops.size());
    gliofed::cuda::denoise_batch(crops.data(), count, smooth.data(), nullptr);
    write(smooth);
}

template <class T, bool kSmooth>
void finish() {
    const auto side = read<std::int64_t>();
    const gliofed::Normalisation normalisation = read_normalisation();
    const auto count = static_cast<std::size_t>(read<std::int64_t>());
    std::vector<std::uint8_t> crops(count * gliofed::kCropPixels);
    read_bytes(crops.data(), crops.size());
    std::vector<T> out(count * 3 * static_cast<std::size_t>(side * side));
    const auto run = kSmooth ? gliofed::cuda::colour_batch<T> : gliofed::cuda::finish_batch<T>;
    run(crops.data(), count, normalisation, out.data(), side, nullptr);
    write(out);
}

// Arbitrary masks, which an opening would never leave: more runs and parts than the plan has room for.
void contour() {
    const Batch batch = read_batch(true);
    for (const ImageView& image : batch.images) {
        gliofed::cuda::ImageTask task{};
        task.height = static_cast<std::int32_t>(image.height);
        task.width = static_cast<std::int32_t>(image.width);
        task.words_per_row = (task.width + 31) / 32;
        std::vector<std::uint32_t> mask(static_cast<std::size_t>(task.height * task.words_per_row));
        for (int y = 0; y < task.height; ++y) {
            for (int x = 0; x < task.width; ++x) {
                const auto word = static_cast<std::size_t>(y * task.words_per_row + x / 32);
                mask[word] |= std::uint32_t{image.row(y)[x] != 0} << (x % 32);
            }
        }
        const auto most = static_cast<std::size_t>(task.height) * static_cast<std::size_t>(task.width / 2 + 1) + 1;
        std::vector<std::int32_t> nodes(most);
        std::vector<std::int32_t> row_starts(static_cast<std::size_t>(task.height) + 1);
        std::vector<gliofed::cuda::Component> components(most);
        task.mask = mask.data();
        task.nodes = nodes.data();
        task.row_starts = row_starts.data();
        task.components = components.data();
        std::vector<DeviceBox> box(1);
        gliofed::cuda::start_contour(&task, box.data(), 1, nullptr);
        write(box);
    }
}

// For each image: the parts of its workspace as byte offsets, then the whole.
void plan() {
    const Batch batch = read_batch(false);
    const gliofed::cuda::Plan plan = gliofed::cuda::make_plan(batch.images, nullptr);
    std::printf("%d %zu\n", plan.num_tiles, plan.bytes);
    for (const gliofed::cuda::ImageTask& task : plan.tasks) {
        std::printf("%d %zu %zu %zu %zu\n", task.first_tile, reinterpret_cast<std::uintptr_t>(task.mask),
                    reinterpret_cast<std::uintptr_t>(task.nodes), reinterpret_cast<std::uintptr_t>(task.row_starts),
                    reinterpret_cast<std::uintptr_t>(task.components));
    }
}

void run(const std::string& what) {
    const auto order = static_cast<emulator::Order>(read<std::int64_t>());
    emulator::use_order(order, read<std::uint64_t>());
    if (what == "crop") return crop();
    if (what == "crop in parts") return crop_in_parts();
    if (what == "contour") return contour();
    if (what == "plan") return plan();
    if (what == "denoise") return denoise();
    if (what == "color float32") return finish<float, true>();
    if (what == "color bfloat16") return finish<gliofed::Bfloat16, true>();
    if (what == "finish float32") return finish<float, false>();
    if (what == "finish bfloat16") return finish<gliofed::Bfloat16, false>();
    if (what == "preprocess float32") return preprocess<float>();
    if (what == "preprocess bfloat16") return preprocess<gliofed::Bfloat16>();
    throw std::runtime_error("unknown request " + what);
}

}  // namespace

int main(int argc, char** argv) {
    try {
        if (argc != 2) throw std::runtime_error("expected one argument: what to run");
        run(argv[1]);
    } catch (const std::exception& error) {
        std::fputs(error.what(), stderr);
        return 2;
    }
    return 0;
}
