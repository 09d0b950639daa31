#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/format/exports/writers.h"
#include "lib/format/packing.h"

namespace gradq {
namespace {

// Columns that the 32 threads of a warp take in one step, 32 columns each.
constexpr int64_t kChunk = 1024;

// Word of a row and bit of the word that hold a bit of column `column`'s code. Thread t of a chunk
// reads word t and multiplies it with four runs of eight neighbouring columns, which lie `threads`
// runs apart; the first of them is in the highest byte, in a byte the first column in the highest
// bit.
struct PlaneBit {
  int64_t word;
  int bit;
};
PlaneBit PlaceOf(int64_t column, int64_t in_features) {
  const int64_t chunk = column / kChunk, inside = column % kChunk;
  const int64_t threads = std::min(kChunk, in_features - chunk * kChunk) / 32;
  const int64_t run = inside / (8 * threads);
  const int64_t thread = inside % (8 * threads) / 8;
  return {chunk * 32 + thread, static_cast<int>(31 - 8 * run - inside % 8)};
}

// [bits, out, in / 32], the highest bit of the codes first.
std::vector<uint32_t> BitPlanes(const QuantizedLinear& linear) {
  const int64_t out = linear.out_features, in = linear.in_features, words = in / 32;
  const int64_t stride = PackedWords(in, linear.bits);
  std::vector<PlaneBit> places;
  for (int64_t column = 0; column < in; ++column) places.push_back(PlaceOf(column, in));
  std::vector<uint32_t> planes(static_cast<size_t>(linear.bits * out * words));
  std::vector<uint8_t> codes(static_cast<size_t>(in));
  for (int64_t row = 0; row < out; ++row) {
    UnpackRow(std::span(linear.packed).subspan(row * stride, stride), linear.bits, codes);
    for (int plane = 0; plane < linear.bits; ++plane) {
      uint32_t* to = planes.data() + (plane * out + row) * words;
      for (int64_t column = 0; column < in; ++column) {
        const uint32_t bit = codes[column] >> (linear.bits - 1 - plane) & 1;
        to[places[column].word] |= bit << places[column].bit;
      }
    }
  }
  return planes;
}

absl::Status AppendPlanes(const Artifact& artifact, const std::string& name, AppendBytes append) {
  GRADQ_ASSIGN_OR_RETURN(const QuantizedLinear linear, artifact.ReadLinear(name));
  const std::vector<uint32_t> planes = BitPlanes(linear);
  GRADQ_RETURN_IF_ERROR(append({reinterpret_cast<const char*>(planes.data()), planes.size() * 4}));
  return append({reinterpret_cast<const char*>(linear.lut.data()), linear.lut.size() * 2});
}

}  // namespace

absl::Status ExportAnyPrecision(const ExportInputs& inputs, FolderWriter& folder) {
  const int bits = inputs.linears.front().bits;
  const nlohmann::json anyprec = {
      {"seed_precision", bits},
      {"parent_precision", bits},
      {"group_count", 1},
      {"arch_config",
       {{"module_names",
         {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
          "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}},
        {"model_name", "model"},
        {"layers_name", "layers"}}}};
  return WriteExportedModel(
      inputs, "anyprec", anyprec,
      [&](const ExportedLinear& linear) -> WeightItem {
        const int64_t out = linear.out_features, in = linear.in_features;
        return {.infos = {{.name = linear.name + ".qweight",
                           .dtype = DType::kI32,
                           .shape = {bits, out, in / 32},
                           .bytes = bits * out * in / 8},
                          {.name = StrCat(linear.name, ".lut", bits),
                           .dtype = DType::kF16,
                           .shape = {out, int64_t{1} << bits},
                           .bytes = (out << bits) * 2}},
                .write = [&artifact = inputs.artifact, name = linear.name](AppendBytes append) {
                  return AppendPlanes(artifact, name, append);
                }};
      },
      folder);
}

}  // namespace gradq
