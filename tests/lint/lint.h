#pragma once

// The rules of the tree that a compiler does not see: who may include what, where libtorch, gRPC,
// protobuf, spdlog and CUDA may appear, file names, columns. lib/README.md draws the layers; the
// tables in lint.cc are those rules. Pure functions.

#include <string>
#include <vector>

namespace gradq::lint {

struct SourceFile {
  std::string path;  // from the repository's root
  std::string content;
};

struct Finding {
  std::string path;
  int line = 0;  // from 1; 0 for the file as a whole
  std::string text;
};

// Every violation in `files`, which are the whole tree: what they include from each other is
// followed.
std::vector<Finding> Lint(const std::vector<SourceFile>& files);

// The sources below `root` that the rules are about: lib, proto, services and tests without
// fixtures and goldens.
std::vector<SourceFile> ReadTree(const std::string& root);

}  // namespace gradq::lint
