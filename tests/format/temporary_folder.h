#pragma once

// A folder that lives as long as a test, with short-hands to fill it.

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>

#include "gtest/gtest.h"
#include "lib/base/files.h"

namespace gradq {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "gradq-test-XXXXXX").string();
    EXPECT_NE(mkdtemp(pattern.data()), nullptr);
    path_ = pattern;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string File(std::string_view name) const { return path_ + "/" + std::string(name); }
  void Write(std::string_view name, std::string_view content) const {
    std::ofstream(File(name), std::ios::binary | std::ios::trunc)
        .write(content.data(), static_cast<std::streamsize>(content.size()));
  }
  std::string Read(std::string_view name) const {
    const auto content = ReadFile(File(name));
    EXPECT_TRUE(content.ok()) << content.status();
    return content.ok() ? *content : "";
  }
  void Remove(std::string_view name) const { std::filesystem::remove(File(name)); }
  // Copies a fixture's files.
  void CopyFixture(std::string_view name) const {
    std::filesystem::copy(std::string(GRADQ_FIXTURES) + "/" + std::string(name), path_,
                          std::filesystem::copy_options::recursive);
  }
  std::unique_ptr<ReadableFolder> Open() const { return *OpenLocalFolder(path_); }

 private:
  std::string path_;
};

}  // namespace gradq
