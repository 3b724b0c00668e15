// The module `fastmtl._C`: what it holds stands in the other bindings_*.cpp, by family.
#include "bindings/view.hpp"

#include "core/isa.hpp"

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastmtl's compiled CPU kernels: raw pointers in, nothing of torch inside.";
  m.def("isa", [] { return fastmtl::isa_name(fastmtl::active_isa()); }, "The instruction set chosen at load.");
  bind_balance(m);
  bind_sigmoid_losses(m);
  bind_softmax_losses(m);
  bind_other_losses(m);
  bind_deep_supervision(m);
  bind_queries(m);
  bind_stain(m);
}
