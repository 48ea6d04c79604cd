// The operators on a GPU: one call of the CUDA twin a batch, on DALI's stream and with memory that DALI lends.
// There is no grey operator here: planes decoded on a GPU are compared with nothing.

#include <vector>

#include "batch.h"
#include "cuda/launch.h"
#include "dali/kernels/dynamic_scratchpad.h"

namespace gliofed::plugin {

namespace {

using Gpu = ::dali::GPUBackend;

static_assert(sizeof(cuda::DeviceBox) == 4 * sizeof(std::int32_t));

}  // namespace

class CropGpu : public ::dali::Operator<Gpu> {
  public:
    using Operator::Operator;

  protected:
    bool SetupImpl(Outputs& outputs, const ::dali::Workspace& ws) override {
        describe_crop(ws, outputs);
        return true;
    }

    void RunImpl(::dali::Workspace& ws) override {
        const auto& images = ws.Input<Gpu>(0);
        auto& crops = ws.Output<Gpu>(0);
        auto& boxes = ws.Output<Gpu>(1);
        crops.SetLayout("HW");
        std::vector<ImageView> views;
        for (int i = 0; i < images.num_samples(); ++i) views.push_back(view_of(images, i));
        if (views.empty()) return;
        ::dali::kernels::DynamicScratchpad scratchpad(ws.stream());
        auto* workspace =
            scratchpad.AllocateGPU<std::uint8_t>(cuda::workspace_bytes(views), cuda::kWorkspaceAlignment);
        cuda::crop_batch(views, crops.mutable_tensor<std::uint8_t>(0),
                         reinterpret_cast<cuda::DeviceBox*>(boxes.mutable_tensor<std::int32_t>(0)), workspace,
                         ws.stream());
    }
};

class FinishGpu : public ::dali::Operator<Gpu> {
  public:
    explicit FinishGpu(const ::dali::OpSpec& spec)
        : Operator(spec), size_(size_of(spec)), normalisation_(normalisation_of(spec)) {}

  protected:
    bool SetupImpl(Outputs& outputs, const ::dali::Workspace& ws) override {
        describe_finish(ws, size_, outputs);
        return true;
    }

    void RunImpl(::dali::Workspace& ws) override {
        const auto& crops = ws.Input<Gpu>(0);
        auto& images = ws.Output<Gpu>(0);
        images.SetLayout("CHW");
        if (crops.num_samples() == 0) return;
        DALI_ENFORCE(crops.IsContiguous(), "crops must lie one after the other, as fn.gliofed.crop makes them");
        cuda::finish_batch(crops.tensor<std::uint8_t>(0), static_cast<std::size_t>(crops.num_samples()),
                           normalisation_, images.mutable_tensor<float>(0), size_, ws.stream());
    }

  private:
    std::int64_t size_;
    Normalisation normalisation_;
};

}  // namespace gliofed::plugin

DALI_REGISTER_OPERATOR(gliofed__Crop, ::gliofed::plugin::CropGpu, ::dali::GPU);
DALI_REGISTER_OPERATOR(gliofed__Finish, ::gliofed::plugin::FinishGpu, ::dali::GPU);
