// The operators on the CPU: one sample a task of DALI's thread pool, one workspace a thread.

#include <algorithm>
#include <vector>

#include "batch.h"
#include "dispatch.h"
#include "pipeline.h"

namespace gliofed::plugin {

namespace {

using Cpu = ::dali::CPUBackend;
using Images = ::dali::TensorList<Cpu>;

void write(const Box& box, std::int32_t* corners) {
    corners[0] = static_cast<std::int32_t>(box.left);
    corners[1] = static_cast<std::int32_t>(box.top);
    corners[2] = static_cast<std::int32_t>(box.right);
    corners[3] = static_cast<std::int32_t>(box.bottom);
}

// Calls work(sample, thread) for each sample of a batch and waits for all.
template <class Work>
void for_each_sample(::dali::Workspace& ws, const Images& input, const Work& work) {
    auto& pool = ws.GetThreadPool();
    for (int i = 0; i < input.num_samples(); ++i) {
        pool.AddWork([&work, i](int thread) { work(i, static_cast<std::size_t>(thread)); },
                     volume(input.tensor_shape_span(i)));
    }
    pool.RunAll();
}

}  // namespace

class GrayCpu : public ::dali::Operator<Cpu> {
  public:
    using Operator::Operator;

  protected:
    bool SetupImpl(Outputs& outputs, const ::dali::Workspace& ws) override {
        describe_gray(ws, outputs);
        return true;
    }

    void RunImpl(::dali::Workspace& ws) override {
        const auto& images = ws.Input<Cpu>(0);
        auto& planes = ws.Output<Cpu>(0);
        for_each_sample(ws, images, [&](int i, std::size_t) {
            const ImageView image = view_of(images, i);
            auto* plane = planes.mutable_tensor<std::uint8_t>(i);
            if (image.channels == 3) {
                twins_.gray(image, plane);
            } else {
                std::copy_n(image.pixels, image.height * image.width, plane);
            }
        });
        planes.SetLayout("HW");
    }

  private:
    const Ops& twins_ = ops();
};

class CropCpu : public ::dali::Operator<Cpu> {
  public:
    using Operator::Operator;

  protected:
    bool SetupImpl(Outputs& outputs, const ::dali::Workspace& ws) override {
        describe_crop(ws, outputs);
        return true;
    }

    void RunImpl(::dali::Workspace& ws) override {
        const auto& images = ws.Input<Cpu>(0);
        auto& crops = ws.Output<Cpu>(0);
        auto& boxes = ws.Output<Cpu>(1);
        workspaces_.resize(static_cast<std::size_t>(ws.GetThreadPool().NumThreads()));
        for_each_sample(ws, images, [&](int i, std::size_t thread) {
            const auto box = crop_image(view_of(images, i), crops.mutable_tensor<std::uint8_t>(i), twins_,
                                        workspaces_[thread]);
            write(box.value_or(Box{}), boxes.mutable_tensor<std::int32_t>(i));
        });
        crops.SetLayout("HW");
    }

  private:
    const Ops& twins_ = ops();  // for good: a workspace serves the twins of one ISA
    std::vector<Workspace> workspaces_;
};

class FinishCpu : public ::dali::Operator<Cpu> {
  public:
    explicit FinishCpu(const ::dali::OpSpec& spec)
        : Operator(spec), size_(size_of(spec)), tables_(normalisation_of(spec)) {}

  protected:
    bool SetupImpl(Outputs& outputs, const ::dali::Workspace& ws) override {
        describe_finish(ws, size_, outputs);
        return true;
    }

    void RunImpl(::dali::Workspace& ws) override {
        const auto& crops = ws.Input<Cpu>(0);
        auto& images = ws.Output<Cpu>(0);
        workspaces_.resize(static_cast<std::size_t>(ws.GetThreadPool().NumThreads()));
        for_each_sample(ws, crops, [&](int i, std::size_t thread) {
            finish_crop(crops.tensor<std::uint8_t>(i), tables_, images.mutable_tensor<float>(i), size_, twins_,
                        workspaces_[thread]);
        });
        images.SetLayout("CHW");
    }

  private:
    std::int64_t size_;
    LevelTables<float> tables_;
    const Ops& twins_ = ops();
    std::vector<Workspace> workspaces_;
};

}  // namespace gliofed::plugin

DALI_REGISTER_OPERATOR(gliofed__Gray, ::gliofed::plugin::GrayCpu, ::dali::CPU);
DALI_REGISTER_OPERATOR(gliofed__Crop, ::gliofed::plugin::CropCpu, ::dali::CPU);
DALI_REGISTER_OPERATOR(gliofed__Finish, ::gliofed::plugin::FinishCpu, ::dali::CPU);
