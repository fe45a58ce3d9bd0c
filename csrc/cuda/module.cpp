// SPDX-License-Identifier: Apache-2.0
// The extension `sdfvq._cuda`: device pointers and the stream come as integers, memory from a callable. The CUDA runtime is linked in
// statically, so importing it needs no GPU and no driver.
#include <pybind11/pybind11.h>

#include "ops.h"

namespace py = pybind11;

namespace sdfvq {

template <class T>
static T *pointer(uintptr_t p) {
  return reinterpret_cast<T *>(p);
}
template <class T>
static uintptr_t number(T *p) {
  return reinterpret_cast<uintptr_t>(p);
}

// Runs `fn(gpu)` without the GIL, but for the moments in which Python allocates.
template <class Fn>
static auto run(const char *op, int device, uintptr_t stream, const py::object &alloc, Fn fn) {
  const Gpu gpu{op, device, pointer<void>(stream), [&](size_t bytes) {
    py::gil_scoped_acquire acquire;
    return pointer<void>(alloc(bytes).cast<uintptr_t>());
  }, [&](void *p) {
    py::gil_scoped_acquire acquire;
    alloc.attr("free")(number(p));
  }};
  py::gil_scoped_release release;
  return fn(gpu);
}

}  // namespace sdfvq

PYBIND11_MODULE(_cuda, m) {
  using namespace sdfvq;
  m.doc() = "CUDA kernels of sdfvq";
  m.attr("RANGE") = int(RANGE), m.attr("ORDER") = int(ORDER), m.attr("FINITE") = int(FINITE);
  m.def("join", [](int device, uintptr_t stream, py::object alloc, uintptr_t coords, int64_t n, uintptr_t table, int64_t rows,
                   uintptr_t out) {
    return run("join", device, stream, alloc, [&](const Gpu &gpu) {
      return join_cuda(gpu, pointer<int32_t>(coords), n, pointer<int32_t>(table), rows, pointer<int32_t>(out));
    });
  });
  m.def("march", [](int device, uintptr_t stream, py::object alloc, uintptr_t coords, uintptr_t sdf, int64_t n, double level,
                    uintptr_t table, int64_t width) {
    const SurfaceCuda s = run("march", device, stream, alloc, [&](const Gpu &gpu) {
      return march_cuda(gpu, pointer<int32_t>(coords), pointer<float>(sdf), n, level, pointer<int8_t>(table), width);
    });
    return py::make_tuple(s.fault, number(s.vertices), s.n_vertices, number(s.faces), s.n_faces);
  });
  m.def("winding", [](int device, uintptr_t stream, py::object alloc, uintptr_t points, uintptr_t point_box, int64_t n,
                      uintptr_t vertices, uintptr_t mesh_box, uintptr_t faces, int64_t n_faces, double beta, uintptr_t out) {
    run("winding", device, stream, alloc, [&](const Gpu &gpu) {
      winding_cuda(gpu, pointer<double>(points), pointer<double>(point_box), n, pointer<double>(vertices), pointer<double>(mesh_box),
                   pointer<int64_t>(faces), n_faces, beta, pointer<double>(out));
    });
  });
  m.def("voxelize", [](int device, uintptr_t stream, py::object alloc, uintptr_t vertices, uintptr_t faces, int64_t n_faces,
                       int resolution, double band) {
    const BandCuda b = run("voxelize", device, stream, alloc, [&](const Gpu &gpu) {
      return voxelize_cuda(gpu, pointer<double>(vertices), pointer<int64_t>(faces), n_faces, resolution, band);
    });
    return py::make_tuple(number(b.coords), number(b.distance), b.n);
  });
}
