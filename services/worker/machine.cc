#include "services/worker/machine.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "lib/base/files.h"
#include "lib/base/strings.h"

namespace gradq {

int64_t MachineMemoryBytes() {
  const int64_t physical =
      static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<int64_t>(sysconf(_SC_PAGE_SIZE));
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    const absl::StatusOr<std::string> text = ReadFile(path, 64);
    if (!text.ok()) continue;
    const int64_t limit = std::strtoll(text->c_str(), nullptr, 10);  // "max": 0
    if (limit > 0) return std::min(physical, limit);
  }
  return physical;
}

std::string DefaultWorkerName() {
  char host[256] = {};
  if (gethostname(host, sizeof(host) - 1) != 0 || host[0] == '\0') host[0] = 'w';
  std::string name = StrCat(static_cast<const char*>(host), "-", getpid());
  for (char& letter : name) {
    const bool allowed = std::isalnum(static_cast<unsigned char>(letter)) != 0 || letter == '-' ||
                         letter == '_' || letter == '.';
    if (!allowed) letter = '-';
  }
  return name;
}

std::string DefaultSpoolFolder() {
  const char* folder = std::getenv("TMPDIR");
  return StrCat(folder == nullptr || *folder == '\0' ? "/tmp" : folder, "/gradq-spool");
}

}  // namespace gradq
