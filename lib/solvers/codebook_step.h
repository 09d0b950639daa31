#pragma once

// Small steps on the codebook of one row, shared by the solvers.

#include <cstdint>
#include <span>
#include <vector>

namespace gradq {

// Columns bucket by bucket: codeword q's columns are order[begin[q]] .. order[begin[q + 1] - 1],
// rising. Columns with active[j] = 0 are in no bucket; empty: all are active.
void SortByCode(std::span<const uint8_t> codes, std::span<const float> active, int levels,
                std::vector<int32_t>* order, std::vector<int32_t>* begin);

enum class CodebookRidge {
  // λ a small share of the mean diagonal of PᵀHP, pulling towards the current codebook: codewords
  // without weights keep their place.
  kRelative,
  // λ = 1e-7 pulling towards 0, as published: codewords without weights become 0.
  kPublished,
};

// centers += the minimiser of δᵀHδ over codebooks minus the current one: −(G + λI)⁻¹ · slope for
// kRelative, with G = PᵀHP [levels, levels] and slope = PᵀH(P·centers − w) (GuidedQuant, codebook
// step; as a correction, so that rounding errors of G only touch the improvement). When G + λI is
// not positive definite, λ grows tenfold until it is.
void CorrectCodebook(std::span<const double> gram, std::span<const double> slope,
                     CodebookRidge ridge, std::span<double> centers);

// The codebook step of single rows of a tile; keeps its scratch memory. One thread at a time.
class RowCodebookStep {
 public:
  RowCodebookStep(int64_t columns, int levels);

  // Of `row` in a tile (lib/kernels/coordinate_descent.h): `error` [columns][kTileRows] = ŵ − w of
  // `codes` [columns][kTileRows] and `table` [levels][kTileRows]. Writes the row's new table in
  // ascending order and its error. `h` row-major [columns, columns]. `active` [columns][kTileRows]
  // as in RowTile: weights kept apart don't count and their error stays 0.
  void Update(const float* h, int row, const float* weight, const uint8_t* codes,
              CodebookRidge ridge, float* error, float* table, const float* active = nullptr);

 private:
  int64_t columns_;
  int levels_;
  std::vector<uint8_t> codes_;
  std::vector<float> error_, active_, scratch_;
  std::vector<int32_t> order_, begin_;
  std::vector<double> centers_, gram_, slope_;
};

// Weights of a row's k-means: `importance` (not below 0), 0 where `apart` is set; when that leaves
// only zeros, all others count 1.
void ImportanceWithout(std::span<const uint8_t> apart, std::span<const float> importance,
                       std::span<float> result);

// Index of the codeword nearest to each weight, the lower one on a tie. `table` ascending.
void AssignNearest(std::span<const float> weights, std::span<const float> table,
                   std::span<uint8_t> codes);

// The same for the weights that are `apart` only; other codes stay. Empty: none are.
void AssignApart(std::span<const uint8_t> apart, std::span<const float> weights,
                 std::span<const float> table, std::span<uint8_t> codes);

// Table and codes as FORMAT.md stores them: codewords that no column uses are dropped, equal ones
// merged, the rest ascending, the tail repeating the largest. `table` ascending, values that fp16
// holds exactly.
void StoreRow(std::span<const float> table, std::span<const uint8_t> codes,
              std::span<uint16_t> stored_table, std::span<uint8_t> stored_codes);

}  // namespace gradq
