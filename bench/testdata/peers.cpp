// The peers of the benchmark that have a C++ or C interface: Boost.Interprocess's message_queue (PEER_BOOST) and ZeroMQ's
// PUSH and PULL over ipc (PEER_ZMQ). The program is a child of the benchmark and does what child.go does for the others: the same
// commands on standard input, the same control page on descriptor 3.
#include <sys/mman.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef PEER_BOOST
#include <boost/interprocess/ipc/message_queue.hpp>
#endif
#ifdef PEER_ZMQ
#include <zmq.h>
#endif

namespace {

constexpr size_t kArrived = 0, kFinished = 64, kSamples = 4096, kMaxSamples = 1 << 20;
constexpr size_t kControlSize = kSamples + 4 * kMaxSamples;
constexpr uint64_t kEndMark = ~uint64_t{0};

struct Options {
  std::string role;
  int index, size, priorities, capacity, producers, consumers;
  std::string names[2];
};

char* control;

std::atomic<uint64_t>& word(size_t at) { return *reinterpret_cast<std::atomic<uint64_t>*>(control + at); }
uint32_t* samples() { return reinterpret_cast<uint32_t*>(control + kSamples); }

int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t{t.tv_sec} * 1000000000 + t.tv_nsec;
}

void rest(int64_t until) {
  while (now() < until) {
  }
}

void meet(uint64_t target) {
  word(kArrived).fetch_add(1);
  for (int i = 0; word(kArrived).load() < target; i++)
    if (i > 1000) sched_yield();
}

#ifdef PEER_BOOST
namespace ipc = boost::interprocess;
class Sender {
 public:
  Sender(const Options& o, int q) : queue_(ipc::open_or_create, o.names[q].c_str(), o.capacity, o.size) {}
  void send(const char* body, size_t n, unsigned priority) { queue_.send(body, n, priority); }

 private:
  ipc::message_queue queue_;
};
class Receiver {
 public:
  Receiver(const Options& o, int q) : queue_(ipc::open_or_create, o.names[q].c_str(), o.capacity, o.size) {}
  size_t receive(char* buf, size_t n) {
    ipc::message_queue::size_type got;
    unsigned priority;
    queue_.receive(buf, n, got, priority);
    return got;
  }

 private:
  ipc::message_queue queue_;
};
#endif

#ifdef PEER_ZMQ
// The socket of the one consumer binds; producers connect.
class Socket {
 protected:
  Socket(const Options& o, int q, int type) : context_(zmq_ctx_new()), socket_(zmq_socket(context_, type)) {
    int linger = -1;
    check(zmq_setsockopt(socket_, ZMQ_SNDHWM, &o.capacity, sizeof o.capacity));
    check(zmq_setsockopt(socket_, ZMQ_RCVHWM, &o.capacity, sizeof o.capacity));
    check(zmq_setsockopt(socket_, ZMQ_LINGER, &linger, sizeof linger));
    const char* name = o.names[q].c_str();
    check(type == ZMQ_PULL ? zmq_bind(socket_, name) : zmq_connect(socket_, name));
  }
  static int check(int r) {
    if (r < 0) throw std::runtime_error(zmq_strerror(zmq_errno()));
    return r;
  }
  void* context_;
  void* socket_;
};
class Sender : Socket {
 public:
  Sender(const Options& o, int q) : Socket(o, q, ZMQ_PUSH) {}
  void send(const char* body, size_t n, unsigned) { check(zmq_send(socket_, body, n, 0)); }
};
class Receiver : Socket {
 public:
  Receiver(const Options& o, int q) : Socket(o, q, ZMQ_PULL) {}
  size_t receive(char* buf, size_t n) { return check(zmq_recv(socket_, buf, n, 0)); }
};
#endif

struct Phase {
  char verb[16];
  long count;
  unsigned long long start, last;
  int ends, group;
  long long pause, type;
};

struct Done {
  long count = 0;
  int64_t first = 0, last = 0;
  int samples = 0;
};

class Work {
 public:
  explicit Work(const Options& o) : o_(o), random_(0x9e3779b97f4a7c15ull * (o.index + 1)), body_(o.size), buf_(o.size) {
    int out = o.role == "pong", in = o.role == "ping";
    if (o.role != "produce") in_ = std::make_unique<Receiver>(o, in);
    if (o.role != "consume") out_ = std::make_unique<Sender>(o, out);
  }

  Done run(const Phase& p) {
    if (o_.role == "produce") return p.pause > 0 ? pacedProduce(p) : produce(p);
    if (o_.role == "consume") return p.pause > 0 ? pacedConsume(p) : consume(p);
    return o_.role == "ping" ? ping(p) : pong(p);
  }

 private:
  unsigned priority() {
    if (o_.priorities <= 1) return 0;
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return (random_ >> 32) * o_.priorities >> 32;
  }
  void stamp(uint64_t v) { memcpy(body_.data(), &v, 8); }
  uint64_t stamped() const {
    uint64_t v;
    memcpy(&v, buf_.data(), 8);
    return v;
  }
  void send(unsigned priority) { out_->send(body_.data(), body_.size(), priority); }
  void receive() {
    if (in_->receive(buf_.data(), buf_.size()) != buf_.size()) throw std::runtime_error("a body of another size");
  }

  Done produce(const Phase& p) {
    meet(p.start);
    Done d;
    d.count = p.count;
    d.first = now();
    for (long i = 0; i < p.count; i++) {
      stamp(i);
      send(priority());
    }
    d.last = now();
    if (word(kFinished).fetch_add(1) + 1 == p.last) {
      stamp(kEndMark);
      for (int i = 0; i < p.ends; i++) send(0);
    }
    return d;
  }

  Done consume(const Phase& p) {
    meet(p.start);
    Done d;
    while (d.count != p.count) {
      receive();
      if (p.count < 0 && stamped() == kEndMark) break;
      if (d.count == 0) d.first = now();
      d.count++;
    }
    d.last = now();
    return d;
  }

  void sample(Done& d, int64_t ns) {
    if (static_cast<size_t>(d.samples) < kMaxSamples) samples()[d.samples++] = std::clamp<int64_t>(ns, 0, UINT32_MAX);
  }

  Done ping(const Phase& p) {
    meet(p.start);
    Done d;
    d.count = p.count;
    int64_t at = d.first = now();
    for (long i = 1; i <= p.count; i++) {
      if (p.pause > 0) {
        rest(at + p.pause);
        at = now();
      }
      stamp(i);
      send(0);
      receive();
      if (stamped() != static_cast<uint64_t>(i)) throw std::runtime_error("the wrong answer");
      if (i % std::max(p.group, 1) == 0) {
        int64_t t = now();
        sample(d, t - at - p.pause);
        at = t;
      }
    }
    d.last = now();
    return d;
  }

  Done pong(const Phase& p) {
    meet(p.start);
    for (long i = 0; i < p.count; i++) {
      receive();
      if (p.pause > 0) rest(now() + p.pause);
      memcpy(body_.data(), buf_.data(), body_.size());
      send(0);
    }
    Done d;
    d.count = p.count;
    return d;
  }

  Done pacedProduce(const Phase& p) {
    meet(p.start);
    timespec pause{p.pause / 1000000000, p.pause % 1000000000};
    for (long i = 0; i < p.count; i++) {
      nanosleep(&pause, nullptr);
      stamp(now());
      send(0);
    }
    Done d;
    d.count = p.count;
    return d;
  }

  Done pacedConsume(const Phase& p) {
    meet(p.start);
    Done d;
    d.count = p.count;
    d.first = now();
    for (long i = 0; i < p.count; i++) {
      receive();
      sample(d, now() - static_cast<int64_t>(stamped()));
    }
    d.last = now();
    return d;
  }

  Options o_;
  uint64_t random_;
  std::vector<char> body_, buf_;
  std::unique_ptr<Sender> out_;
  std::unique_ptr<Receiver> in_;
};

void serve(const Options& o) {
  void* m = mmap(nullptr, kControlSize, PROT_READ | PROT_WRITE, MAP_SHARED, 3, 0);
  if (m == MAP_FAILED) throw std::runtime_error("mapping the control page");
  control = static_cast<char*>(m);
  Work work(o);
  printf("ready\n");
  fflush(stdout);
  char line[256];
  while (fgets(line, sizeof line, stdin)) {
    Phase p;
    if (sscanf(line, "%15s %ld %llu %llu %d %d %lld %lld", p.verb, &p.count, &p.start, &p.last, &p.ends, &p.group, &p.pause, &p.type) != 8)
      throw std::runtime_error("a malformed command");
    Done d = work.run(p);
    printf("ok %ld %lld %lld %d 0\n", d.count, static_cast<long long>(d.first), static_cast<long long>(d.last), d.samples);
    fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 11) {
    fprintf(stderr, "this program is started by kumquat bench\n");
    return 2;
  }
  if (int core = atoi(argv[10]); core >= 0) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    sched_setaffinity(0, sizeof set, &set);
  }
  try {
    serve({argv[1], atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), atoi(argv[5]), atoi(argv[6]), atoi(argv[7]), {argv[8], argv[9]}});
  } catch (const std::exception& e) {
    printf("error %s\n", e.what());
    fflush(stdout);
    _Exit(1);
  }
  _Exit(0);  // sockets that linger would hold a killed benchmark up
}
