#include "tests/lint/lint.h"

#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gradq::lint {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

std::string Lines(const std::vector<Finding>& findings) {
  std::string text;
  for (const Finding& finding : findings) {
    text += finding.path + ":" + std::to_string(finding.line) + ": " + finding.text + "\n";
  }
  return text;
}

TEST(Tree, KeepsItsRules) {
  const std::vector<SourceFile> files = ReadTree(GRADQ_SOURCE);
  EXPECT_GT(files.size(), 50u);
  EXPECT_EQ(Lines(Lint(files)), "");
}

// A tree that keeps the rules, with one file added to it.
std::string LintWith(const std::string& path, const std::string& content) {
  const std::vector<SourceFile> files = {
      {"lib/base/files.h", "#pragma once\n#include <string>\n"},
      {"lib/base/sum-inl.h", "#if defined(A_) == defined(HWY_TARGET_TOGGLE)\n#endif\n"},
      {"lib/base/files.cc", "#include \"lib/base/files.h\"\n#include <cerrno>\n"},
      {"lib/base/logging.cc", "#include <spdlog/spdlog.h>\n"},
      {"lib/jobs/core.h", "#pragma once\n#include \"gradq/v1/job.pb.h\"\n"},
      {"lib/solvers/layer_problem.h", "#pragma once\n#include \"lib/base/files.h\"\n"},
      {"lib/transformer/block.h", "#pragma once\n#include <ATen/core/Tensor.h>\n"},
      {"lib/transformer/block_internal.h", "#pragma once\n"},
      {"services/rpc/server.h", "#pragma once\n#include <grpcpp/grpcpp.h>\n"},
      {path, content},
  };
  return Lines(Lint(files));
}

TEST(Rules, LeaveAGoodFileAlone) {
  EXPECT_EQ(LintWith("lib/pipeline/stage.cc",
                     "#include \"lib/transformer/block.h\"\n#include \"lib/base/files.h\"\n"
                     "#include <ATen/ops/linear_ops.h>\n// https://" +
                         std::string(120, 'x') + "\n"),
            "");
  EXPECT_EQ(LintWith("lib/kernels/product_cuda.cu", "#include <cuda_runtime.h>\n"), "");
  EXPECT_EQ(LintWith("tests/pipeline/stage_test.cc",
                     "#include \"lib/transformer/block_internal.h\"\n#include <grpcpp/grpcpp.h>\n"),
            "");
  EXPECT_EQ(LintWith("lib/base/plan.h", "#pragma once\n// " + std::string(97, 'x') + "\n"), "");
}

struct Violation {
  std::string name;
  std::string path;
  std::string content;
  std::string finding;
};

class Planted : public testing::TestWithParam<Violation> {};

TEST_P(Planted, IsFound) {
  const Violation& violation = GetParam();
  const std::string findings = LintWith(violation.path, violation.content);
  EXPECT_THAT(findings, HasSubstr(violation.path));
  EXPECT_THAT(findings, HasSubstr(violation.finding));
}

INSTANTIATE_TEST_SUITE_P(
    Rules, Planted,
    testing::ValuesIn(std::vector<Violation>{
        {"LayerUp", "lib/base/a.cc", "#include \"lib/solvers/layer_problem.h\"\n",
         ":1: lib/base may not include from lib/solvers"},
        {"Sibling", "lib/statistics/a.cc", "\n#include \"lib/solvers/layer_problem.h\"\n",
         ":2: lib/statistics may not include from lib/solvers"},
        {"LibToServices", "lib/pipeline/a.cc", "#include \"services/rpc/server.h\"\n",
         "may not include from services/rpc"},
        {"LibToTests", "lib/base/a.cc", "#include \"tests/lint/lint.h\"\n",
         "may not include from tests/lint"},
        {"JobsToFormat", "lib/jobs/a.cc", "#include \"lib/format/artifact.h\"\n",
         "lib/jobs may not include from lib/format"},
        {"CoordinatorToLibtorch", "services/coordinator/a.cc",
         "#include \"lib/transformer/block.h\"\n",
         "services/coordinator may not include from lib/transformer"},
        {"UnknownFolder", "lib/newcomer/a.cc", "", "folder has no row in the include rules"},
        {"Absent", "lib/base/a.cc", "#include \"lib/base/gone.h\"\n", "no such file"},
        {"NotFromRoot", "lib/base/a.cc", "#include \"files.h\"\n", "not from the root: files.h"},
        {"Internal", "lib/pipeline/a.cc", "#include \"lib/transformer/block_internal.h\"\n",
         "internal to another folder"},
        {"Grpc", "lib/jobs/a.cc", "#include <grpcpp/grpcpp.h>\n", "gRPC only in services"},
        {"GrpcStub", "lib/jobs/a.cc", "#include \"gradq/v1/job_service.grpc.pb.h\"\n",
         "gRPC only in services"},
        {"Protobuf", "lib/catalog/a.cc", "#include \"gradq/v1/job.pb.h\"\n",
         "protobuf only in services and lib/jobs"},
        {"Libtorch", "lib/kernels/a.cc", "#include <ATen/core/Tensor.h>\n",
         "lib/kernels has no libtorch"},
        {"LibtorchInCli", "services/cli/a.cc", "#include <c10/core/Device.h>\n",
         "services/cli has no libtorch"},
        {"LargeHeader", "lib/solvers/a.cc", "#include <torch/torch.h>\n", "too large a header"},
        {"LargeHeaderInTest", "tests/solvers/a.cc", "#include <ATen/ATen.h>\n",
         "too large a header"},
        {"Spdlog", "services/worker/a.cc", "#include <spdlog/spdlog.h>\n",
         "logging goes through lib/base/logging.h"},
        {"Cuda", "lib/kernels/a.cc", "#include <cuda_runtime.h>\n", "CUDA headers only in"},
        {"Cub", "lib/kernels/a.h", "#pragma once\n#include <cub/cub.cuh>\n",
         ":2: CUDA headers only in"},
        {"Meeting", "tests/pipeline/a.cc",
         "#include <ATen/core/Tensor.h>\n#include \"gradq/v1/job.pb.h\"\n",
         "libtorch meets another's headers"},
        {"MeetingThroughHeaders", "tests/pipeline/a.cc",
         "#include \"lib/transformer/block.h\"\n#include \"lib/jobs/core.h\"\n",
         "gradq/v1/job.pb.h in lib/jobs/core.h"},
        {"Name", "lib/base/string_utils.h", "#pragma once\n", "file name says nothing: utils"},
        {"NameAlone", "lib/jobs/manager.cc", "", "file name says nothing: manager"},
        {"PragmaOnceInl", "lib/base/a-inl.h", "#include <string>\n", "begins with #pragma once"},
        {"PragmaOnce", "lib/base/a.h", "#include <string>\n", "begins with #pragma once"},
        {"OwnHeader", "lib/solvers/layer_problem.cc",
         "#include <string>\n#include \"lib/solvers/layer_problem.h\"\n",
         "own header is not first"},
        {"Columns", "lib/base/a.cc", "// " + std::string(98, 'x') + "\n",
         ":1: more than 100 columns: 101"},
        {"ColumnsOfProto", "proto/gradq/v1/a.proto", "// " + std::string(98, 'x') + "\n",
         "more than 100 columns"},
        {"Tab", "lib/base/a.cc", "\tint a;\n", "tab"},
    }),
    [](const auto& info) { return info.param.name; });

TEST(Rules, LeaveRawStringsAndNothingAfterThemAlone) {
  const std::string wide(120, 'x');
  EXPECT_EQ(LintWith("lib/base/a.cc", "a = R\"(\n" + wide + "\n)\";\nb = R\"(" + wide + ")\";\n"),
            "");
  EXPECT_THAT(LintWith("lib/base/a.cc", "a = R\"(\n)\";\n" + wide + "\n"),
              HasSubstr(":3: more than 100 columns"));
}

TEST(Rules, CountCharactersAndNotBytes) {
  std::string line = "// ";
  for (int i = 0; i < 97; ++i) line += "≥";
  EXPECT_EQ(LintWith("lib/base/a.cc", line + "\n"), "");
  EXPECT_THAT(LintWith("lib/base/a.cc", line + "≥\n"), HasSubstr("more than 100 columns: 101"));
}

}  // namespace
}  // namespace gradq::lint
