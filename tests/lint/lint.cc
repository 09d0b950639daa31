#include "tests/lint/lint.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string_view>

namespace gradq::lint {
namespace {

namespace fs = std::filesystem;

// Folder: the other folders whose headers it may include. A folder that is not here may not be
// included from or exist.
const std::map<std::string, std::set<std::string>>& AllowedFolders() {
  static const std::map<std::string, std::set<std::string>> allowed = {
      {"lib/base", {}},
      {"lib/catalog", {"lib/base"}},
      {"lib/kernels", {"lib/base"}},
      {"lib/tokenizer", {"lib/base"}},
      {"lib/format", {"lib/base", "lib/catalog"}},
      {"lib/jobs", {"lib/base", "lib/catalog"}},
      {"lib/transformer", {"lib/base", "lib/catalog", "lib/kernels", "lib/format"}},
      {"lib/statistics",
       {"lib/base", "lib/catalog", "lib/kernels", "lib/format", "lib/transformer"}},
      {"lib/solvers", {"lib/base", "lib/catalog", "lib/kernels", "lib/format"}},
      {"lib/inference",
       {"lib/base", "lib/catalog", "lib/kernels", "lib/format", "lib/tokenizer",
        "lib/transformer"}},
      {"lib/pipeline",
       {"lib/base", "lib/catalog", "lib/kernels", "lib/format", "lib/transformer", "lib/statistics",
        "lib/solvers", "lib/inference"}},
      {"services/rpc", {"lib/base"}},
      {"services/cli", {"lib/base", "lib/catalog", "lib/format", "lib/tokenizer", "services/rpc"}},
      {"services/coordinator",
       {"lib/base", "lib/catalog", "lib/format", "lib/tokenizer", "lib/jobs", "services/rpc"}},
      // Of lib/jobs what reads a plan's messages, not the core.
      {"services/worker",
       {"lib/base", "lib/catalog", "lib/kernels", "lib/format", "lib/jobs", "lib/transformer",
        "lib/pipeline", "services/rpc"}},
      {"services/inference_worker",
       {"lib/base", "lib/catalog", "lib/kernels", "lib/format", "lib/tokenizer", "lib/transformer",
        "lib/inference", "services/rpc", "services/worker"}},
      {"services/dashboard", {"lib/base", "lib/catalog", "lib/jobs", "services/rpc"}},
  };
  return allowed;
}

constexpr std::array kLibtorchFolders = {"lib/transformer", "lib/statistics", "lib/solvers",
                                         "lib/pipeline", "lib/inference"};

// Headers that cost seconds and gigabytes in every file; the needed ATen/ops/*_ops.h do the same.
constexpr std::array kBannedHeaders = {"torch/torch.h", "torch/all.h", "torch/extension.h",
                                       "ATen/ATen.h", "ATen/Functions.h"};

constexpr std::array kForbiddenNames = {"util",   "utils",   "helper", "helpers",
                                        "common", "manager", "misc"};

constexpr size_t kColumns = 100;

struct Include {
  std::string target;
  bool quoted = false;
  int line = 0;
};

struct Parsed {
  std::string folder;  // "lib/base", "tests/lint", "proto/gradq"
  std::vector<Include> includes;
};

bool StartsWith(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

bool EndsWith(std::string_view text, std::string_view suffix) {
  return text.size() >= suffix.size() && text.substr(text.size() - suffix.size()) == suffix;
}

template <typename Names>
bool Contains(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// The first two parts of a path, or the first when there are no more: "lib/base".
std::string FolderOf(std::string_view path) {
  const size_t first = path.find('/');
  if (first == std::string_view::npos) return "";
  const size_t second = path.find('/', first + 1);
  return std::string(path.substr(0, second == std::string_view::npos ? first : second));
}

bool IsCode(std::string_view path) {
  return EndsWith(path, ".h") || EndsWith(path, ".cc") || EndsWith(path, ".cu") ||
         EndsWith(path, ".cuh");
}

bool IsHeader(std::string_view path) { return EndsWith(path, ".h") || EndsWith(path, ".cuh"); }

bool IsLibtorch(std::string_view header) {
  return StartsWith(header, "ATen/") || StartsWith(header, "c10/") || StartsWith(header, "torch/");
}

bool IsGrpc(std::string_view header) {
  return StartsWith(header, "grpcpp/") || StartsWith(header, "grpc/") ||
         EndsWith(header, ".grpc.pb.h");
}

bool IsProtobuf(std::string_view header) {
  return EndsWith(header, ".pb.h") || StartsWith(header, "google/protobuf/");
}

bool IsCuda(std::string_view header) {
  for (const std::string_view prefix :
       {"cuda", "cublas", "cudnn", "cusparse", "cusolver", "curand", "cufft", "nccl", "nvrtc",
        "cub/", "thrust/", "mma.h", "cooperative_groups"}) {
    if (StartsWith(header, prefix)) return true;
  }
  return false;
}

bool MayUseCuda(std::string_view path) {
  return EndsWith(path, ".cu") || EndsWith(path, ".cuh") || EndsWith(path, "_cuda.cc") ||
         EndsWith(path, "_cuda.h");
}

// Characters, not bytes: ≥ and ‖ take one column.
size_t Columns(std::string_view line) {
  return static_cast<size_t>(std::count_if(line.begin(), line.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

std::vector<Include> ParseIncludes(const std::string& content) {
  std::vector<Include> includes;
  std::istringstream lines(content);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    if (!StartsWith(line, "#include")) continue;
    const size_t open = line.find_first_of("\"<");
    if (open == std::string::npos) continue;
    const size_t close = line.find(line[open] == '"' ? '"' : '>', open + 1);
    if (close == std::string::npos) continue;
    includes.push_back({line.substr(open + 1, close - open - 1), line[open] == '"', number});
  }
  return includes;
}

class Linter {
 public:
  explicit Linter(const std::vector<SourceFile>& files) {
    for (const SourceFile& file : files) {
      parsed_[file.path] = {FolderOf(file.path), IsCode(file.path) ? ParseIncludes(file.content)
                                                                   : std::vector<Include>()};
    }
  }

  std::vector<Finding> Run(const std::vector<SourceFile>& files) {
    for (const SourceFile& file : files) {
      CheckName(file);
      CheckColumns(file);
      if (!IsCode(file.path)) continue;
      CheckPlace(file);
      CheckForm(file);
      for (const Include& include : parsed_[file.path].includes) {
        CheckLayers(file.path, include);
        CheckLibraries(file.path, include);
      }
      CheckMeetings(file.path);
    }
    return std::move(findings_);
  }

 private:
  void Report(const std::string& path, int line, std::string text) {
    findings_.push_back({path, line, std::move(text)});
  }

  void CheckName(const SourceFile& file) {
    std::istringstream parts(fs::path(file.path).stem().string());
    std::string part;
    while (std::getline(parts, part, '_')) {
      if (Contains(kForbiddenNames, part)) Report(file.path, 0, "file name says nothing: " + part);
    }
  }

  // Links, includes and raw strings cannot be broken.
  void CheckColumns(const SourceFile& file) {
    std::istringstream lines(file.content);
    std::string line;
    bool raw = false;
    for (int number = 1; std::getline(lines, line); ++number) {
      const size_t opens = line.find("R\"(");
      const bool breakable = !raw && opens == std::string::npos &&
                             line.find("://") == std::string::npos && !StartsWith(line, "#include");
      if (breakable && Columns(line) > kColumns) {
        Report(file.path, number, "more than 100 columns: " + std::to_string(Columns(line)));
      }
      if (!raw && IsCode(file.path) && line.find('\t') != std::string::npos) {
        Report(file.path, number, "tab");
      }
      if (opens != std::string::npos) raw = true;
      if (raw && line.find(")\"", opens == std::string::npos ? 0 : opens) != std::string::npos) {
        raw = false;
      }
    }
  }

  void CheckPlace(const SourceFile& file) {
    const std::string& folder = parsed_[file.path].folder;
    if (StartsWith(folder, "tests") || StartsWith(folder, "proto")) return;
    if (AllowedFolders().count(folder) == 0) {
      Report(file.path, 0, "folder has no row in the include rules: " + folder);
    }
  }

  // #pragma once in headers, or a guard per target; a source includes its own header first.
  void CheckForm(const SourceFile& file) {
    if (IsHeader(file.path)) {
      // Highway's way for code that a source compiles once per SIMD target: its own guard.
      if (file.path.ends_with("-inl.h") &&
          file.content.find("defined(HWY_TARGET_TOGGLE)") != std::string::npos) {
        return;
      }
      if (!StartsWith(file.content, "#pragma once\n")) {
        Report(file.path, 1, "a header begins with #pragma once");
      }
      return;
    }
    const std::string own = file.path.substr(0, file.path.rfind('.')) + ".h";
    if (parsed_.count(own) == 0) return;
    const auto& includes = parsed_[file.path].includes;
    if (includes.empty() || includes[0].target != own) {
      Report(file.path, includes.empty() ? 0 : includes[0].line, "own header is not first: " + own);
    }
  }

  void CheckLayers(const std::string& path, const Include& include) {
    const std::string& folder = parsed_[path].folder;
    const bool ours = StartsWith(include.target, "lib/") ||
                      StartsWith(include.target, "services/") ||
                      StartsWith(include.target, "tests/");
    if (!ours) {
      if (include.quoted && include.target.find('/') == std::string::npos) {
        Report(path, include.line, "include path is not from the root: " + include.target);
      }
      return;
    }
    // Highway compiles a file once for each target by including it from within.
    const bool known = parsed_.count(include.target) != 0;
    if (!known) Report(path, include.line, "no such file: " + include.target);
    const std::string other = FolderOf(include.target);
    if (other == folder) return;
    if (include.target.find("_internal.h") != std::string::npos && !StartsWith(folder, "tests")) {
      Report(path, include.line, "internal to another folder: " + include.target);
    }
    if (StartsWith(folder, "tests")) return;
    const auto row = AllowedFolders().find(folder);
    if (row != AllowedFolders().end() && row->second.count(other) == 0) {
      Report(path, include.line, folder + " may not include from " + other);
    }
  }

  void CheckLibraries(const std::string& path, const Include& include) {
    const std::string& folder = parsed_[path].folder;
    const bool test = StartsWith(folder, "tests");
    const bool service = StartsWith(folder, "services");
    const std::string& header = include.target;
    if (Contains(kBannedHeaders, header)) {
      Report(path, include.line, "too large a header, include what is used: " + header);
    }
    if (IsLibtorch(header) && !test && !Contains(kLibtorchFolders, folder)) {
      Report(path, include.line, folder + " has no libtorch: " + header);
    }
    if (IsGrpc(header) && !test && !service) {
      Report(path, include.line, "gRPC only in services: " + header);
    }
    if (IsProtobuf(header) && !test && !service && folder != "lib/jobs") {
      Report(path, include.line, "protobuf only in services and lib/jobs: " + header);
    }
    if (StartsWith(header, "spdlog/") && path != "lib/base/logging.cc") {
      Report(path, include.line, "logging goes through lib/base/logging.h: " + header);
    }
    if (IsCuda(header) && !MayUseCuda(path)) {
      Report(path, include.line, "CUDA headers only in .cu, .cuh and _cuda files: " + header);
    }
  }

  // libtorch brings fmt and protobuf headers of its own: no file sees ATen and .pb.h or spdlog, not
  // through our headers either.
  void CheckMeetings(const std::string& path) {
    std::string libtorch;
    std::string other;
    std::set<std::string> seen = {path};
    std::vector<std::string> open = {path};
    while (!open.empty()) {
      const std::string file = open.back();
      open.pop_back();
      for (const Include& include : parsed_[file].includes) {
        if (IsLibtorch(include.target)) libtorch = include.target + " in " + file;
        if (IsProtobuf(include.target) || StartsWith(include.target, "spdlog/")) {
          other = include.target + " in " + file;
        }
        if (parsed_.count(include.target) != 0 && seen.insert(include.target).second) {
          open.push_back(include.target);
        }
      }
    }
    if (!libtorch.empty() && !other.empty()) {
      Report(path, 0, "libtorch meets another's headers: " + libtorch + ", " + other);
    }
  }

  std::map<std::string, Parsed> parsed_;
  std::vector<Finding> findings_;
};

}  // namespace

std::vector<Finding> Lint(const std::vector<SourceFile>& files) { return Linter(files).Run(files); }

std::vector<SourceFile> ReadTree(const std::string& root) {
  std::vector<SourceFile> files;
  for (const std::string_view top : {"lib", "proto", "services", "tests"}) {
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(root) / top)) {
      const std::string path = fs::relative(entry.path(), root).string();
      if (StartsWith(path, "tests/fixtures/") || StartsWith(path, "tests/golden/")) continue;
      if (!entry.is_regular_file()) continue;
      if (!IsCode(path) && !EndsWith(path, ".proto") && !EndsWith(path, ".rs")) continue;
      std::ifstream stream(entry.path(), std::ios::binary);
      files.push_back({path, std::string(std::istreambuf_iterator<char>(stream), {})});
    }
  }
  std::sort(files.begin(), files.end(),
            [](const SourceFile& a, const SourceFile& b) { return a.path < b.path; });
  return files;
}

}  // namespace gradq::lint
