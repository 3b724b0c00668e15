// Dice + BCE of several heads against one mask.
#include "bindings/view.hpp"

#include <tuple>
#include <vector>

#include "losses/deep_supervision.hpp"

namespace py = pybind11;

namespace {

// (address, element type, batch and channel stride, three pixel strides), as `deep_supervision` in fastmtl/ops makes it.
using VolumeView = std::array<std::int64_t, 7>;

fastmtl::Volume volume(const VolumeView& view) {
  return {pointer<void>(static_cast<std::uintptr_t>(view[0])), static_cast<fastmtl::Element>(view[1]), view[2], view[3],
          {view[4], view[5], view[6]}};
}

// Logits, their gradient, size and scale of one head.
using HeadView = std::tuple<View, View, std::array<std::int64_t, 3>, std::array<std::int64_t, 3>>;

// What all heads of one call share.
struct Supervision {
  std::vector<fastmtl::DeepHead> heads;
  fastmtl::DeepSupervision problem;

  Supervision(std::int64_t batch, std::int64_t channels, const std::vector<HeadView>& views,
              const std::vector<double>& weights, const std::array<View, 2>& flat,
              const std::array<VolumeView, 2>& full, std::uintptr_t pos_weight, bool squared, int downsample) {
    for (std::size_t l = 0; l < views.size(); ++l) {
      const auto& [logits, gradient, size, scale] = views[l];
      const bool windowed = flat[0][0] == 0 || scale[0] * scale[1] * scale[2] != 1;
      fastmtl::DeepHead head{};
      head.problem = {{batch, channels, size[0] * size[1] * size[2], planes(logits),
                       windowed ? fastmtl::Planes{} : planes(flat[0]), windowed ? fastmtl::Planes{} : planes(flat[1])},
                      pointer<const float>(pos_weight), batch, squared};
      for (int axis = 0; axis < 3; ++axis) head.size[axis] = size[axis], head.scale[axis] = scale[axis];
      head.windowed = windowed;
      head.gradient = planes(gradient);
      head.weight = weights[l];
      heads.push_back(head);
    }
    problem = {heads.data(), static_cast<std::int64_t>(heads.size()), channels, volume(full[0]), volume(full[1]),
               static_cast<fastmtl::Downsample>(downsample)};
  }
};

}  // namespace

void bind_deep_supervision(py::module_& m) {
  m.def(
      "deep_supervision_forward",
      [](std::int64_t batch, std::int64_t channels, const std::vector<HeadView>& heads,
         const std::vector<double>& weights, const std::array<View, 2>& flat, const std::array<VolumeView, 2>& full,
         std::uintptr_t pos_weight, int downsample, double bce_weight, double dice_weight, bool over_batch,
         bool squared, bool jaccard, double smooth_nr, double smooth_dr, int empty, std::uintptr_t losses,
         std::uintptr_t total, std::uintptr_t coefficients, int num_threads) {
        Supervision all(batch, channels, heads, weights, flat, full, pos_weight, squared, downsample);
        const fastmtl::DiceOptions dice{smooth_nr, smooth_dr, jaccard, squared, static_cast<fastmtl::Empty>(empty)};
        return fastmtl::deep_supervision_forward(all.problem, {nullptr, bce_weight, dice_weight, dice, over_batch, 1},
                                                 pointer<float>(losses), pointer<float>(total),
                                                 pointer<float>(coefficients), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "flat, full: target and mask; see deep_supervision.hpp.");
  m.def(
      "deep_supervision_backward",
      [](std::int64_t batch, std::int64_t channels, const std::vector<HeadView>& heads,
         const std::vector<double>& weights, const std::array<View, 2>& flat, const std::array<VolumeView, 2>& full,
         std::uintptr_t pos_weight, int downsample, bool squared, std::uintptr_t grad, std::int64_t grad_stride,
         std::uintptr_t coefficients, int num_threads) {
        Supervision all(batch, channels, heads, weights, flat, full, pos_weight, squared, downsample);
        fastmtl::deep_supervision_backward(all.problem, pointer<const float>(grad), grad_stride,
                                           pointer<const float>(coefficients), num_threads);
      },
      py::call_guard<py::gil_scoped_release>(), "Every head's gradient; see deep_supervision.hpp.");
}
