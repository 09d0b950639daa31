#pragma once

// A reader of gradq artifacts written from lib/format/FORMAT.md alone: it shares no code with
// lib/format, so that page and program can be checked against each other. Slow and trusting; for
// tests.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace independent {

inline std::string Slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot open " + path);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct Tensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;

  int64_t Word(int64_t i) const {
    uint32_t word = 0;
    std::memcpy(&word, bytes.data() + 4 * i, 4);
    return word;
  }
  double Half(int64_t i) const {
    uint16_t h = 0;
    std::memcpy(&h, bytes.data() + 2 * i, 2);
    const int exponent = (h >> 10) & 31, mantissa = h & 1023;
    if (exponent == 31) throw std::runtime_error("not finite");
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    return (h & 0x8000) != 0 ? -magnitude : magnitude;
  }
};

// All tensors of a folder's safetensors files.
class Tensors {
 public:
  explicit Tensors(const std::string& folder) {
    std::map<std::string, bool> files;
    std::ifstream index(folder + "/model.safetensors.index.json");
    if (index) {
      const nlohmann::json map = nlohmann::json::parse(index)["weight_map"];
      for (const auto& [name, file] : map.items()) files[file.get<std::string>()] = true;
    } else {
      files["model.safetensors"] = true;
    }
    for (const auto& [file, unused] : files) Load(Slurp(folder + "/" + file));
  }

  std::map<std::string, Tensor> tensors;

 private:
  void Load(const std::string& bytes) {
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), 8);
    const nlohmann::json header = nlohmann::json::parse(bytes.substr(8, length));
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__") continue;
      const int64_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
      tensors[name] = {entry["dtype"], entry["shape"],
                       bytes.substr(8 + length + begin, end - begin)};
    }
  }
};

class Artifact : public Tensors {
 public:
  explicit Artifact(const std::string& folder)
      : Tensors(folder), json(nlohmann::json::parse(Slurp(folder + "/gradq.json"))) {
    if (json["format_version"] != 1 && json["format_version"] != 2)
      throw std::runtime_error("version");
  }

  // fp32 [out, in] of a linear.
  std::vector<float> Weight(const std::string& name) const {
    nlohmann::json record;
    for (const auto& candidate : json["linears"]) {
      if (candidate["name"] == name) record = candidate;
    }
    const int b = record["bits"];
    int64_t shape[2];
    std::memcpy(shape, tensors.at(name + ".weight_shape").bytes.data(), 16);
    const int64_t out = shape[0], in = shape[1];
    const Tensor& packed = tensors.at(name + ".weight_packed");
    const auto code = [&](int64_t r, int64_t j) {
      int64_t value = 0;
      for (int i = 0; i < b; ++i) {
        const int64_t bit = j * b + i;
        value |= ((packed.Word(r * packed.shape[1] + bit / 32) >> (bit % 32)) & 1) << i;
      }
      return value;
    };
    std::vector<float> weight;
    for (int64_t r = 0; r < out; ++r) {
      for (int64_t j = 0; j < in; ++j) {
        if (record["encoding"] == "lut") {
          weight.push_back(static_cast<float>(
              tensors.at(name + ".weight_lut").Half(r * (int64_t{1} << b) + code(r, j))));
        } else {
          const int64_t s = record["group_size"], n = (in + s - 1) / s, k = j / s;
          const Tensor& zeros = tensors.at(name + ".weight_zero_point");
          int64_t zero = 0;
          for (int i = 0; i < b; ++i)
            zero |= ((zeros.Word((r * b + i) / 32 * n + k) >> ((r * b + i) % 32)) & 1) << i;
          const float scale =
              static_cast<float>(tensors.at(name + ".weight_scale").Half(r * n + k));
          weight.push_back(static_cast<float>(code(r, j) - zero) * scale);
        }
      }
    }
    if (record["outlier_fraction"] == 0) return weight;
    const Tensor &ptr = tensors.at(name + ".outlier_row_ptr"),
                 &col = tensors.at(name + ".outlier_col"),
                 &value = tensors.at(name + ".outlier_value");
    const int64_t chunks = (in + 65535) / 65536;
    for (int64_t p = 0; p < out * chunks; ++p) {
      for (int64_t i = ptr.Word(p); i < ptr.Word(p + 1); ++i) {
        uint16_t column = 0;
        std::memcpy(&column, col.bytes.data() + 2 * i, 2);
        weight[p / chunks * in + p % chunks * 65536 + column] += static_cast<float>(value.Half(i));
      }
    }
    return weight;
  }

  nlohmann::json json;
};

}  // namespace independent
