// SPDX-License-Identifier: Apache-2.0
// The CUDA ops as the binding sees them: device pointers in, device pointers out, no CUDA headers and no torch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

namespace sdfvq {

// Where and how one call runs. All memory, scratch and results alike, comes from `alloc`, that is from torch, and stays with it.
struct Gpu {
  const char *op;  // for messages
  int device;
  void *stream;
  std::function<void *(size_t)> alloc;  // bytes -> device pointer, aligned to 256
  std::function<void(void *)> free;     // what is not needed to the end of the call
};

// What is wrong with the arrays, found on the device on the way; 0 is nothing. The caller says it in words.
enum Fault : int { NONE = 0, RANGE = 1, ORDER = 2, FINITE = 4 };

// coords: [N, 4] int32.  table: [M, 4] int32 sorted, unique.  out: [N] int32 row of `table`, or -1.  Returns faults.
int join_cuda(const Gpu &gpu, const int32_t *coords, int64_t n, const int32_t *table, int64_t m, int32_t *out);

struct SurfaceCuda {
  int fault = NONE;                // where it is not NONE there is no surface
  int64_t n_vertices = 0, n_faces = 0;
  double *vertices = nullptr;      // [V, 3]
  int64_t *faces = nullptr;        // [F, 3]
};

// coords: [N, 3] int32 sorted, unique.  sdf: [N].  table: [256, width] int8, three edges per face, -1 at the end.
SurfaceCuda march_cuda(const Gpu &gpu, const int32_t *coords, const float *sdf, int64_t n, double level, const int8_t *table,
                       int64_t width);

// points: [P, 3].  vertices: [V, 3].  faces: [F, 3], in range.  point_box, mesh_box: [2, 3] lowest and highest.  beta: a cluster of
// faces is far beyond this many of its radii.  out: [P].
void winding_cuda(const Gpu &gpu, const double *points, const double *point_box, int64_t n, const double *vertices,
                  const double *mesh_box, const int64_t *faces, int64_t n_faces, double beta, double *out);

struct BandCuda {
  int64_t n = 0;
  int32_t *coords = nullptr;  // [N, 3], sorted
  float *distance = nullptr;  // [N]
};

// vertices: [V, 3].  faces: [F, 3], in range.  band: in voxels.  Scratch grows with the faces, the result and (resolution / 8)^3.
BandCuda voxelize_cuda(const Gpu &gpu, const double *vertices, const int64_t *faces, int64_t n_faces, int resolution, double band);

}  // namespace sdfvq
