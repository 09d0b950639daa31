// What bad input gets from the coordinator: a clear error with the value, the right code, and
// nothing left behind.

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>

#include "tests/services/coordinator_fixture.h"

namespace gradq {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class CoordinatorRefusals : public CoordinatorFixture {
 protected:
  void SetUp() override {
    // A model root of our own, with a copy to break and a secret beside it.
    model_root_ = temporary_ / "models";
    output_root_ = temporary_ / "out";
    fs::create_directories(output_root_);
    fs::create_directories(model_root_);
    fs::copy(std::string(GRADQ_FIXTURES) + "/tiny-llama", model_root_ + "/tiny-llama");
    fs::create_directories(temporary_ / "secret");
    StartServer();
  }

  // The spec after `change` is refused with `code` and a message that names `what`; nothing was
  // stored.
  void Refused(absl::StatusCode code, const std::string& what,
               const std::function<void(v1::JobSpec&)>& change) {
    v1::JobSpec spec = Spec();
    change(spec);
    const absl::Status status = Create(spec).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
    EXPECT_EQ(CountJobs(), 0u);
  }
  std::string ModelFile(const std::string& name) { return model_root_ + "/tiny-llama/" + name; }
  size_t FilesIn(const std::string& folder) {
    return static_cast<size_t>(
        std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
  }

  static constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  static constexpr auto kNotFound = absl::StatusCode::kNotFound;
  static constexpr auto kDenied = absl::StatusCode::kPermissionDenied;
};

TEST_F(CoordinatorRefusals, PathsStayBelowTheirRoots) {
  fs::create_directory_symlink(temporary_ / "secret", model_root_ + "/link");
  fs::create_directory_symlink(temporary_ / "secret", output_root_ + "/link");
  for (const std::string& model :
       {std::string("../secret"), std::string("tiny-llama/../../secret"), std::string("link"),
        temporary_ / "secret", std::string("/"), std::string("/no/such/folder")}) {
    Refused(kDenied, "--model-root", [&](v1::JobSpec& spec) { spec.set_model(model); });
  }
  for (const std::string& output : {std::string("../secret/x"), std::string("link/x"),
                                    temporary_ / "elsewhere", std::string("/x")}) {
    Refused(kDenied, "--output-root", [&](v1::JobSpec& spec) { spec.set_output(output); });
  }
  EXPECT_EQ(FilesIn(temporary_ / "secret"), 0u);
}

TEST_F(CoordinatorRefusals, BrokenModels) {
  Refused(kNotFound, "no-such-model", [](v1::JobSpec& spec) { spec.set_model("no-such-model"); });
  Refused(kInvalid, "path is empty", [](v1::JobSpec& spec) { spec.set_model(""); });
  const auto keep = [](v1::JobSpec&) {};
  const std::string config = *ReadFile(ModelFile("config.json"));
  ASSERT_TRUE(WriteFileAtomically(ModelFile("config.json"), "{").ok());
  Refused(kInvalid, "config.json", keep);
  ASSERT_TRUE(WriteFileAtomically(ModelFile("config.json"), config).ok());

  const std::string tokenizer = *ReadFile(ModelFile("tokenizer.json"));
  ASSERT_TRUE(WriteFileAtomically(ModelFile("tokenizer.json"), "{}").ok());
  Refused(kInvalid, "tokenizer.json", keep);
  fs::remove(ModelFile("tokenizer.json"));
  Refused(kNotFound, "tokenizer.json", keep);
  ASSERT_TRUE(WriteFileAtomically(ModelFile("tokenizer.json"), tokenizer).ok());

  // A NaN in the last bf16 value of the file.
  std::string weights = *ReadFile(ModelFile("model.safetensors"));
  weights[weights.size() - 1] = '\x7f';
  weights[weights.size() - 2] = '\xff';
  ASSERT_TRUE(WriteFileAtomically(ModelFile("model.safetensors"), weights).ok());
  Refused(kInvalid, "model.", keep);
}

TEST_F(CoordinatorRefusals, BadTexts) {
  const auto text = [&](const std::string& content) {
    return [this, content](v1::JobSpec& spec) { spec.set_calibration_blob(MustUpload(content)); };
  };
  Refused(kInvalid, "calibration text is empty", text(""));
  Refused(kInvalid, "calibration text: ", text("too short"));
  Refused(kInvalid, "calibration text: ", text("not UTF-8 \xff\xfe"));
  Refused(kNotFound, "calibration text: ", [](v1::JobSpec& spec) {
    spec.set_calibration_blob(Sha256Hex("never uploaded"));
  });
  Refused(kInvalid, "calibration", [](v1::JobSpec& spec) { spec.clear_calibration_blob(); });
  Refused(kInvalid, "../../etc",
          [](v1::JobSpec& spec) { spec.set_calibration_blob("../../etc/passwd"); });
  Refused(kInvalid, "evaluation text: ", [&](v1::JobSpec& spec) {
    spec.set_evaluation_blob(MustUpload("short"));
  });
  Refused(kInvalid, "100000", [](v1::JobSpec& spec) { spec.set_sequences(100'000); });
}

TEST_F(CoordinatorRefusals, BadRecipes) {
  using Spec = v1::JobSpec;
  Refused(kInvalid, "lnq", [](Spec& spec) { spec.mutable_recipe()->set_method("lnqq"); });
  Refused(kInvalid, "9", [](Spec& spec) { spec.mutable_recipe()->set_bits(9); });
  Refused(kInvalid, "-1", [](Spec& spec) { spec.mutable_recipe()->set_bits(-1); });
  Refused(kInvalid, "-2", [](Spec& spec) { spec.mutable_recipe()->set_groups(-2); });
  Refused(kInvalid, "5000", [](Spec& spec) { spec.mutable_recipe()->set_groups(5000); });
  Refused(kInvalid, "fancy", [](Spec& spec) { spec.mutable_recipe()->set_objective("fancy"); });
  Refused(kInvalid, "pqi2", [](Spec& spec) { spec.mutable_recipe()->set_outliers("pqi2"); });
  Refused(kInvalid, "cycles",
          [](Spec& spec) { (*spec.mutable_recipe()->mutable_options())["cycle"] = "3"; });
  Refused(kInvalid, "many",
          [](Spec& spec) { (*spec.mutable_recipe()->mutable_options())["cycles"] = "many"; });
  Refused(kInvalid, "513", [](Spec& spec) { spec.set_length(513); });
  Refused(kInvalid, "length outside", [](Spec& spec) { spec.set_length(1); });
  Refused(kInvalid, "-4", [](Spec& spec) { spec.set_sequences(-4); });
  Refused(kInvalid, "float8", [](Spec& spec) { spec.set_compute_dtype("float8"); });
  Refused(kInvalid, "77", [](Spec& spec) { spec.set_stages(77); });
}

TEST_F(CoordinatorRefusals, BadOutlierPolicies) {
  using Spec = v1::JobSpec;
  const auto policy = [](const std::string& name, const std::string& option,
                         const std::string& value) {
    return [=](Spec& spec) {
      spec.mutable_recipe()->set_outliers(name);
      if (!option.empty()) (*spec.mutable_recipe()->mutable_outlier_options())[option] = value;
    };
  };
  Refused(kInvalid, "squeezellm: option fraction must be a number in 0..0.2: 0.3",
          policy("squeezellm", "fraction", "0.3"));
  Refused(kInvalid, "0..0.2: -0.001", policy("gwq", "fraction", "-0.001"));
  Refused(kInvalid, "0..0.2: nan", policy("pqi", "fraction", "nan"));
  Refused(kInvalid, "unknown option of gwq: nodes", policy("gwq", "nodes", "3"));
  Refused(kInvalid, "outlier option without an outlier policy: fraction",
          policy("none", "fraction", "0.01"));
  Refused(kInvalid, "sensitive_fraction above the whole fraction: 0.01, 0.0045",
          policy("squeezellm", "sensitive_fraction", "0.01"));
  // Four windows are calibrated on.
  Refused(kInvalid, "5, 4", policy("gwq", "samples", "5"));
}

TEST_F(CoordinatorRefusals, GradientsWhereTheJobExcludesThem) {
  const auto forward_only = [](const std::string& method, const std::string& objective,
                               const std::string& outliers) {
    return [=](v1::JobSpec& spec) {
      spec.set_forward_only(true);
      spec.mutable_recipe()->set_method(method);
      spec.mutable_recipe()->set_objective(objective);
      spec.mutable_recipe()->set_outliers(outliers);
    };
  };
  Refused(kInvalid, "method lnq with objective guided (fisher_blocks)",
          forward_only("lnq", "guided", "none"));
  Refused(kInvalid, "method squeezellm (fisher_diagonal)",
          forward_only("squeezellm", "guided", "none"));
  Refused(kInvalid, "outlier policy squeezellm (fisher_diagonal)",
          forward_only("rtn", "guided", "squeezellm"));
  Refused(kInvalid, "outlier policy gwq (weight_gradient)", forward_only("rtn", "plain", "gwq"));
  Refused(kInvalid, "outlier policy pqi", forward_only("lnq", "plain", "pqi"));
  for (const char* method : {"lnq", "rtn"}) {
    v1::JobSpec spec = Spec();
    forward_only(method, "plain", "none")(spec);
    EXPECT_TRUE(Create(spec, "", /*validate_only=*/true).ok()) << method;
  }
}

TEST_F(CoordinatorRefusals, WhatTheCoupledObjectiveNeeds) {
  const auto coupled = [](const std::string& option, const std::string& value) {
    return [=](v1::JobSpec& spec) {
      spec.mutable_recipe()->set_objective("coupled");
      if (!option.empty()) (*spec.mutable_recipe()->mutable_options())[option] = value;
    };
  };
  Refused(kInvalid, "hold one out for the shrinkage: 1", [&](v1::JobSpec& spec) {
    coupled("", "")(spec);
    spec.set_sequences(1);
  });
  Refused(kInvalid, "--solver best", coupled("solver", "published"));
  Refused(kInvalid, "shrinkage", coupled("shrinkage", "2"));
  Refused(kInvalid, "lnq only: rtn", [&](v1::JobSpec& spec) {
    coupled("", "")(spec);
    spec.mutable_recipe()->set_method("rtn");
  });
}

TEST_F(CoordinatorRefusals, AverageBitsOutOfReach) {
  const auto average = [](double bits) {
    return [=](v1::JobSpec& spec) { spec.mutable_recipe()->set_average_bits(bits); };
  };
  // The message says the range; what lies in it is accepted.
  v1::JobSpec spec = Spec();
  average(1.9)(spec);
  const absl::Status low = Create(spec).status();
  EXPECT_EQ(low.code(), kInvalid) << low;
  const std::string message(low.message());
  const size_t range = message.find("reaches ");
  ASSERT_NE(range, std::string::npos) << message;
  double least = 0, most = 0;
  ASSERT_EQ(std::sscanf(message.c_str() + range, "reaches %lf to %lf", &least, &most), 2)
      << message;
  EXPECT_GT(least, 2);
  EXPECT_LT(least, most);
  Refused(kInvalid, message.substr(range, message.find(')') - range), average(least - 0.01));
  Refused(kInvalid, "", average(0));
  Refused(kInvalid, "", average(-2.5));
  Refused(kInvalid, "", average(std::nan("")));
  average((least + most) / 2)(spec);
  const auto middle = Create(spec, "", /*validate_only=*/true);
  EXPECT_TRUE(middle.ok()) << middle.status();
}

TEST_F(CoordinatorRefusals, OutputsThatStand) {
  const std::string output = output_root_ + "/artifact";
  fs::create_directories(output);
  ASSERT_TRUE(WriteFileAtomically(output + "/kept", "content").ok());
  Refused(absl::StatusCode::kAlreadyExists, output, [](v1::JobSpec&) {});
  EXPECT_EQ(*ReadFile(output + "/kept"), "content");
}

TEST_F(CoordinatorRefusals, ForceNeverRemovesTheModelOrTheData) {
  StopServer();
  output_root_ = temporary_.path();
  StartServer();
  for (const char* output : {".", "models", "models/tiny-llama", "data", "data/blobs/.."}) {
    Refused(kInvalid, "holds the model or the coordinator's data", [&](v1::JobSpec& spec) {
      spec.set_output(output);
      spec.set_force(true);
    });
  }
}

TEST_F(CoordinatorRefusals, TwoJobsDoNotShareAnOutput) {
  const auto first = Create(Spec());
  ASSERT_TRUE(first.ok()) << first.status();
  const absl::Status second = Create(Spec()).status();
  EXPECT_TRUE(absl::IsAlreadyExists(second)) << second;
  EXPECT_THAT(std::string(second.message()), HasSubstr(first->name()));
  ASSERT_TRUE(Cancel(first->name()).ok());
  EXPECT_TRUE(Create(Spec()).ok()) << "free again";
}

TEST_F(CoordinatorRefusals, NothingIsLeftBehind) {
  const std::string blob = MustUpload(FixtureText("calibration.txt"));
  const size_t before = FilesIn(temporary_ / "data/blobs");
  v1::JobSpec spec = Spec();
  spec.mutable_recipe()->set_groups(1000);
  EXPECT_FALSE(Create(spec).ok());
  const auto checked = Create(Spec(), "", /*validate_only=*/true);
  ASSERT_TRUE(checked.ok()) << checked.status();
  EXPECT_TRUE(checked->name().empty());
  EXPECT_EQ(checked->plan().linears_size(), 21);
  v1::PlanJobRequest request;
  *request.mutable_spec() = Spec();
  const auto plan = Call(&v1::JobService::Stub::PlanJob, request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_GT(plan->artifact_bytes(), 0);
  EXPECT_GT(plan->plan().worker_memory_bytes(), 0);
  EXPECT_GT(plan->inference_cpu().linear_bytes(), 0);
  // In 16 bits half of what the CPU keeps in fp32.
  EXPECT_EQ(plan->inference_cpu().kept_bytes(), 2 * plan->inference_cuda().kept_bytes());
  EXPECT_EQ(plan->inference_cpu().cache_bytes(), 2 * plan->inference_cuda().cache_bytes());
  EXPECT_GE(plan->inference_cuda().cache_bytes(), plan->inference_cuda().cache_bytes_per_token());
  EXPECT_EQ(FilesIn(temporary_ / "data/blobs"), before);
  EXPECT_EQ(FilesIn(output_root_), 0u);
  EXPECT_EQ(CountJobs(), 0u);
}

TEST_F(CoordinatorRefusals, UploadsAreVerified) {
  const std::string blobs = temporary_ / "data/blobs";
  const std::string content(300'000, 'c');
  EXPECT_TRUE(absl::IsDataLoss(Upload(content, Sha256Hex("something else"))));
  EXPECT_TRUE(absl::IsInvalidArgument(Upload(content, "no digest")));
  EXPECT_TRUE(absl::IsInvalidArgument(Upload(content, "../../etc/passwd")));
  EXPECT_EQ(FilesIn(blobs), 0u);
  EXPECT_TRUE(Upload(content, Sha256Hex(content)).ok());
  EXPECT_TRUE(Upload(content, Sha256Hex(content)).ok()) << "again: answered early";
  EXPECT_EQ(FilesIn(blobs), 1u);

  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(10));
  v1::UploadBlobResponse response;
  const auto writer = jobs_->UploadBlob(&context, &response);
  v1::UploadBlobRequest request;
  request.set_sha256(Sha256Hex("long"));
  request.set_size(int64_t{1} << 60);
  writer->Write(request);
  writer->WritesDone();
  EXPECT_FALSE(writer->Finish().ok());
}

TEST_F(CoordinatorRefusals, DamagedBlobsAreNotUsed) {
  const v1::JobSpec spec = Spec();
  std::ofstream(temporary_ / ("data/blobs/" + spec.calibration_blob()), std::ios::app) << "x";
  EXPECT_TRUE(absl::IsDataLoss(Create(spec).status()));
}

TEST_F(CoordinatorRefusals, ASecondCoordinatorIsRefused) {
  CoordinatorOptions options;
  options.data_dir = temporary_ / "data";
  const auto second = Coordinator::Start(options);
  ASSERT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
  EXPECT_THAT(std::string(second.status().message()),
              AllOf(HasSubstr("another coordinator"), HasSubstr(options.data_dir)));
}

TEST_F(CoordinatorRefusals, WithoutRootsNoPathIsTaken) {
  StopServer();
  model_root_ = "";
  StartServer();
  Refused(kDenied, "without --model-root", [](v1::JobSpec&) {});
}

TEST_F(CoordinatorRefusals, BadCallsOfWorkers) {
  FakeWorker nameless(channel_, "");
  EXPECT_TRUE(absl::IsInvalidArgument(nameless.Register()));
  FakeWorker path(channel_, "../x");
  EXPECT_TRUE(absl::IsInvalidArgument(path.Register()));
}

}  // namespace
}  // namespace gradq
