// An HTTP server, a thread for each connection: parses, builds an answer out of maps and strings, sorts, formats.
// `server PORT`

#include <algorithm>
#include <arpa/inet.h>
#include <cstdlib>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace shop {

struct Item {
    std::string name;
    double price;
};

struct Rule {
    virtual ~Rule() = default;
    virtual double apply(const Item &item) const = 0;
};

struct Discount final : Rule {
    double apply(const Item &item) const override { return item.price * 0.9; }
};

class Catalogue {
  public:
    explicit Catalogue(unsigned seed) {
        for (unsigned i = 0; i < 400; i++) {
            seed = seed * 1664525u + 1013904223u;
            items["item " + std::to_string(seed % 10007)].push_back({std::to_string(seed), seed % 1000 / 10.0});
        }
    }

    std::vector<std::pair<std::string, double>> best(const Rule &rule) const {
        std::vector<std::pair<std::string, double>> found;
        for (const auto &[name, same] : items) {
            double sum = 0;
            for (const auto &item : same)
                sum += rule.apply(item);
            found.emplace_back(name, sum);
        }
        std::sort(found.begin(), found.end(), [](const auto &a, const auto &b) { return a.second > b.second; });
        return found;
    }

  private:
    std::map<std::string, std::vector<Item>> items;
};

std::string answer(unsigned seed) {
    Catalogue catalogue(seed);
    std::unique_ptr<Rule> rule = std::make_unique<Discount>();
    std::ostringstream text;
    for (const auto &[name, price] : catalogue.best(*rule))
        text << "{\"name\":\"" << name << "\",\"price\":" << price << "}\n";
    return text.str();
}

} // namespace shop

static void serve(int connection) {
    std::string request;
    char bytes[4096];
    unsigned seed = 1;
    for (;;) {
        size_t end = request.find("\r\n\r\n");
        if (end == std::string::npos) {
            ssize_t got = read(connection, bytes, sizeof bytes);
            if (got <= 0)
                break;
            request.append(bytes, static_cast<size_t>(got));
            continue;
        }
        request.erase(0, end + 4);
        std::string body = shop::answer(seed++);
        std::string reply = "HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
        for (size_t sent = 0; sent < reply.size();) {
            ssize_t put = send(connection, reply.data() + sent, reply.size() - sent, MSG_NOSIGNAL);
            if (put <= 0)
                goto out;
            sent += static_cast<size_t>(put);
        }
    }
out:
    close(connection);
}

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(atoi(argv[1])));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, reinterpret_cast<sockaddr *>(&address), sizeof address) != 0 || listen(listener, 64) != 0)
        return 1;
    for (;;) {
        int connection = accept(listener, nullptr, nullptr);
        if (connection >= 0)
            std::thread(serve, connection).detach();
    }
}
