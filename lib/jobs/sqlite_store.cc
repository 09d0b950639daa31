// JobStore on SQLite through SOCI: one connection for everything, WAL with synchronous=FULL, the
// exclusive lock held as long as it is open, so that a second coordinator is refused.

#include <soci/soci.h>
#include <soci/sqlite3/soci-sqlite3.h>

#include <functional>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/jobs/job_store.h"

namespace gradq {
namespace {

constexpr int kSchemaVersion = 1;

// The whole schema. `kind` is StoreRecord::Table. Key order is byte order, as std::string's.
constexpr const char* kSchema[] = {
    "CREATE TABLE records (kind INTEGER NOT NULL, key TEXT NOT NULL, data BLOB NOT NULL,"
    " PRIMARY KEY (kind, key)) STRICT, WITHOUT ROWID",
    "CREATE TABLE events (seq INTEGER PRIMARY KEY, job TEXT NOT NULL, data BLOB NOT NULL) STRICT",
    "CREATE INDEX events_by_job ON events (job, seq)",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    "INSERT INTO meta (name, value) VALUES ('epoch', 0)",
};

absl::Status ToStatus(int code, const std::string& message) {
  switch (code & 0xff) {
    case SQLITE_FULL:
      return absl::ResourceExhaustedError(message);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::FailedPreconditionError(
          StrCat("the store is open in another process: ", message));
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(message);
    default:
      return absl::UnavailableError(message);
  }
}

// Runs `body` and turns SOCI's exceptions into a status.
absl::Status Guarded(const std::string& path, const std::function<absl::Status()>& body) {
  try {
    return body();
  } catch (const soci::sqlite3_soci_error& error) {
    return ToStatus(error.result(), StrCat("job store ", path, ": ", error.what()));
  } catch (const soci::soci_error& error) {
    return absl::UnavailableError(StrCat("job store ", path, ": ", error.what()));
  }
}

void WriteBlob(soci::blob* blob, const std::string& data) {
  blob->trim(0);
  blob->write(0, data.data(), data.size());
}

std::string ReadBlob(soci::blob* blob) {
  std::string data(blob->get_len(), '\0');
  if (!data.empty()) blob->read(0, data.data(), data.size());
  return data;
}

class SqliteStore final : public JobStore {
 public:
  explicit SqliteStore(std::string path) : path_(std::move(path)) {}

  absl::Status Open() {
    return Guarded(path_, [&] {
      sql_.open(soci::sqlite3, StrCat("dbname=", path_, " timeout=1"));
      sql_ << "PRAGMA locking_mode = EXCLUSIVE";
      std::string mode;
      sql_ << "PRAGMA journal_mode = WAL", soci::into(mode);
      if (mode != "wal") {
        return absl::UnavailableError(StrCat("job store ", path_, ": no WAL mode: ", mode));
      }
      sql_ << "PRAGMA synchronous = FULL";
      sql_ << "PRAGMA foreign_keys = ON";
      sql_ << "BEGIN EXCLUSIVE";  // taken here, kept by the locking mode
      sql_ << "COMMIT";
      std::string check;
      sql_ << "PRAGMA quick_check(1)", soci::into(check);
      if (check != "ok") {
        return absl::DataLossError(StrCat("job store ", path_, ": quick_check failed: ", check));
      }
      return Migrate();
    });
  }

  absl::Status Commit(const StoreBatch& batch) override {
    return Guarded(path_, [&] {
      soci::transaction transaction(sql_);
      int kind = 0;
      std::string key;
      soci::blob data(sql_);
      soci::statement put =
          (sql_.prepare << "INSERT OR REPLACE INTO records (kind, key, data) VALUES (:k, :n, :d)",
           soci::use(kind), soci::use(key), soci::use(data));
      for (const StoreRecord& record : batch.records) {
        kind = static_cast<int>(record.table);
        key = record.key;
        if (record.data.empty()) {
          sql_ << "DELETE FROM records WHERE kind = :k AND key = :n", soci::use(kind),
              soci::use(key);
          continue;
        }
        WriteBlob(&data, record.data);
        put.execute(true);
      }
      long long seq = 0;
      std::string job;
      soci::statement append =
          (sql_.prepare << "INSERT INTO events (seq, job, data) VALUES (:s, :j, :d)",
           soci::use(seq), soci::use(job), soci::use(data));
      long long last = LastSeq();
      for (const StoreEvent& event : batch.events) {
        if (event.seq <= last) {
          return absl::InternalError(
              StrCat("event seq does not increase: ", event.seq, ", ", int64_t{last}));
        }
        last = seq = event.seq;
        job = event.job;
        WriteBlob(&data, event.data);
        append.execute(true);
      }
      transaction.commit();
      return absl::OkStatus();
    });
  }

  absl::StatusOr<StoreContent> Load() override {
    StoreContent content;
    GRADQ_RETURN_IF_ERROR(Guarded(path_, [&] {
      sql_ << "UPDATE meta SET value = value + 1 WHERE name = 'epoch'";
      long long epoch = 0;
      sql_ << "SELECT value FROM meta WHERE name = 'epoch'", soci::into(epoch);
      content.epoch = epoch;
      content.last_seq = LastSeq();
      int kind = 0;
      std::string key;
      soci::blob data(sql_);
      soci::statement all =
          (sql_.prepare << "SELECT kind, key, data FROM records ORDER BY kind, key",
           soci::into(kind), soci::into(key), soci::into(data));
      all.execute();
      while (all.fetch()) {
        content.records.push_back({static_cast<StoreRecord::Table>(kind), key, ReadBlob(&data)});
      }
      return absl::OkStatus();
    }));
    return content;
  }

  absl::StatusOr<std::vector<StoreEvent>> Events(const std::string& job, int64_t after,
                                                 int limit) override {
    std::vector<StoreEvent> found;
    GRADQ_RETURN_IF_ERROR(Guarded(path_, [&] {
      long long seq = 0;
      const long long first = after;
      std::string owner;
      soci::blob data(sql_);
      soci::statement some =
          job.empty() ? (sql_.prepare << "SELECT seq, job, data FROM events WHERE seq > :a"
                                         " ORDER BY seq LIMIT :l",
                         soci::use(first), soci::use(limit), soci::into(seq), soci::into(owner),
                         soci::into(data))
                      : (sql_.prepare << "SELECT seq, job, data FROM events WHERE job = :j"
                                         " AND seq > :a ORDER BY seq LIMIT :l",
                         soci::use(job), soci::use(first), soci::use(limit), soci::into(seq),
                         soci::into(owner), soci::into(data));
      some.execute();
      while (some.fetch()) found.push_back({seq, owner, ReadBlob(&data)});
      return absl::OkStatus();
    }));
    return found;
  }

 private:
  absl::Status Migrate() {
    int version = 0;
    sql_ << "PRAGMA user_version", soci::into(version);
    if (version == kSchemaVersion) return absl::OkStatus();
    if (version != 0) {
      return absl::FailedPreconditionError(StrCat("job store ", path_,
                                                  " has a schema that this program "
                                                  "does not know: ",
                                                  version, ", ", kSchemaVersion));
    }
    soci::transaction transaction(sql_);
    for (const char* statement : kSchema) sql_ << statement;
    sql_ << StrCat("PRAGMA user_version = ", kSchemaVersion);
    transaction.commit();
    return absl::OkStatus();
  }

  long long LastSeq() {
    long long last = 0;
    sql_ << "SELECT coalesce(max(seq), 0) FROM events", soci::into(last);
    return last;
  }

  std::string path_;
  soci::session sql_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<JobStore>> OpenSqliteStore(const std::string& path) {
  auto store = std::make_unique<SqliteStore>(path);
  GRADQ_RETURN_IF_ERROR(store->Open());
  return std::unique_ptr<JobStore>(std::move(store));
}

}  // namespace gradq
