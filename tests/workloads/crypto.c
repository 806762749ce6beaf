/* Hashes and encrypts with OpenSSL's assembly, whose frames count from registers of every kind,
 * after a moment without. Declared here: its headers need not be installed.
 * `crypto CPU_MS` */

#include <dlfcn.h>
#include <stddef.h>

#include "work.h"

#define BYTES (1 << 18)
#define MS_BEFORE 300u

LEAF(leaf)

static unsigned char text[BYTES], hash[64];

typedef unsigned char *one_shot(const unsigned char *, size_t, unsigned char *);
static one_shot *sha1, *sha256, *sha512;

KEPT void with_sha1(void) {
    sha1(text, BYTES, hash);
    BARRIER();
}

KEPT void with_sha256(void) {
    sha256(text, BYTES, hash);
    BARRIER();
}

KEPT void with_sha512(void) {
    sha512(text, BYTES, hash);
    BARRIER();
}

typedef struct cipher cipher;
typedef struct cipher_context cipher_context;
static cipher_context *(*new_context)(void);
static int (*begin)(cipher_context *, const cipher *, void *, const unsigned char *, const unsigned char *);
static int (*update)(cipher_context *, unsigned char *, int *, const unsigned char *, int);
static cipher_context *gcm, *chacha;

KEPT void with_gcm(void) {
    int length;
    update(gcm, text, &length, text, BYTES);
    BARRIER();
}

KEPT void with_chacha(void) {
    int length;
    update(chacha, text, &length, text, BYTES);
    BARRIER();
}

static cipher_context *prepared(void *library, const char *name) {
    const cipher *(*find)(void) = (const cipher *(*)(void))dlsym(library, name);
    cipher_context *context = new_context();
    begin(context, find(), NULL, text, text);
    return context;
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    void *library = dlopen("libcrypto.so.3", RTLD_NOW);
    if (!library)
        return 1;
    sha1 = (one_shot *)dlsym(library, "SHA1");
    sha256 = (one_shot *)dlsym(library, "SHA256");
    sha512 = (one_shot *)dlsym(library, "SHA512");
    *(void **)&new_context = dlsym(library, "EVP_CIPHER_CTX_new");
    *(void **)&begin = dlsym(library, "EVP_EncryptInit_ex");
    *(void **)&update = dlsym(library, "EVP_EncryptUpdate");
    gcm = prepared(library, "EVP_aes_128_gcm");
    chacha = prepared(library, "EVP_chacha20_poly1305");
    while (cpu_ms() < MS_BEFORE)
        sink = leaf(sink);
    while (cpu_ms() < enough) {
        with_sha1();
        with_sha256();
        with_sha512();
        with_gcm();
        with_chacha();
    }
    return 0;
}
