// Dice + BCE of several heads against one mask.
#include "bindings/view.hpp"

#include <tuple>
#include <vector>

#include "losses/deep_supervision.hpp"

namespace pybind11::detail {
template <>
struct type_caster<fastmtl::Downsample> : enum_caster<fastmtl::Downsample> {};
}  // namespace pybind11::detail

namespace {

// (address, element type, batch and channel stride, three pixel strides), from fastmtl/ops/losses/deep_supervision.py.
using VolumeView = std::array<std::int64_t, 7>;
using Head = std::tuple<fastmtl::Planes, fastmtl::Planes, Sizes, Sizes>;  // logits, their gradient, size, scale
using Flat = std::array<fastmtl::Planes, 2>;                              // target and mask, as planes
using Full = std::array<VolumeView, 2>;                                   // target and mask

fastmtl::Volume volume(const VolumeView& view) {
  return {
      pointer<void>(view[0]), static_cast<fastmtl::Element>(view[1]), view[2], view[3], {view[4], view[5], view[6]}};
}

// What all heads of one call share.
struct Supervision {
  std::vector<fastmtl::DeepHead> heads;
  fastmtl::DeepSupervision problem;

  Supervision(std::int64_t batch, std::int64_t channels, const std::vector<Head>& views,
              const std::vector<double>& weights, const Flat& flat, const Full& full, Address pos_weight, bool squared,
              fastmtl::Downsample downsample) {
    for (std::size_t l = 0; l < views.size(); ++l) {
      const auto& [logits, gradient, size, scale] = views[l];
      fastmtl::DeepHead head{};
      head.windowed = flat[0].data == nullptr || scale[0] * scale[1] * scale[2] != 1;
      const Flat own = head.windowed ? Flat{} : flat;
      head.problem = {
          {batch, channels, size[0] * size[1] * size[2], logits, own[0], own[1]}, pos_weight, batch, squared};
      for (int axis = 0; axis < 3; ++axis) head.size[axis] = size[axis], head.scale[axis] = scale[axis];
      head.gradient = gradient;
      head.weight = weights[l];
      heads.push_back(head);
    }
    const auto number = static_cast<std::int64_t>(heads.size());
    problem = {heads.data(), number, channels, volume(full[0]), volume(full[1]), downsample};
  }
};

}  // namespace

void bind_deep_supervision(pybind11::module_& m) {
  define(
      m, "deep_supervision_forward",
      [](std::int64_t batch, std::int64_t channels, const std::vector<Head>& heads, const std::vector<double>& weights,
         const Flat& flat, const Full& full, Address pos_weight, fastmtl::Downsample downsample, double bce_weight,
         double dice_weight, bool over_batch, bool squared, bool jaccard, double smooth_nr, double smooth_dr,
         fastmtl::Empty empty, Address losses, Address total, Address coefficients, int num_threads) {
        Supervision all(batch, channels, heads, weights, flat, full, pos_weight, squared, downsample);
        const fastmtl::DiceOptions dice{smooth_nr, smooth_dr, jaccard, squared, empty};
        return fastmtl::deep_supervision_forward(all.problem, {nullptr, bce_weight, dice_weight, dice, over_batch, 1},
                                                 losses, total, coefficients, num_threads);
      },
      "See deep_supervision.hpp.");
  define(
      m, "deep_supervision_backward",
      [](std::int64_t batch, std::int64_t channels, const std::vector<Head>& heads, const std::vector<double>& weights,
         const Flat& flat, const Full& full, Address pos_weight, fastmtl::Downsample downsample, bool squared,
         Address grad, std::int64_t grad_stride, Address coefficients, int num_threads) {
        Supervision all(batch, channels, heads, weights, flat, full, pos_weight, squared, downsample);
        fastmtl::deep_supervision_backward(all.problem, grad, grad_stride, coefficients, num_threads);
      },
      "Every head's gradient; see deep_supervision.hpp.");
}
