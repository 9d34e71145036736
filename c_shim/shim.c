#include "shim.h"
#include <sys/ioctl.h>
#include <linux/sockios.h>

void mwr_insert_tail(apr_bucket_brigade *bb, apr_bucket *b)
{
    APR_BRIGADE_INSERT_TAIL(bb, b);
}

int mwr_brigade_empty(apr_bucket_brigade *bb)
{
    return APR_BRIGADE_EMPTY(bb);
}

apr_bucket *mwr_next(apr_bucket_brigade *bb, apr_bucket *b)
{
    b = b ? APR_BUCKET_NEXT(b) : APR_BRIGADE_FIRST(bb);
    return b == APR_BRIGADE_SENTINEL(bb) ? NULL : b;
}

int mwr_is_eos(const apr_bucket *b)
{
    return APR_BUCKET_IS_EOS(b);
}

int mwr_is_metadata(const apr_bucket *b)
{
    return APR_BUCKET_IS_METADATA(b);
}

apr_status_t mwr_bucket_read(apr_bucket *b, const char **data, apr_size_t *len)
{
    return apr_bucket_read(b, data, len, APR_BLOCK_READ);
}

void mwr_file_read_size(apr_bucket *b, apr_size_t size)
{
#if APU_MAJOR_VERSION > 1 || APU_MINOR_VERSION >= 6
    apr_bucket_file_set_buf_size(b, size);
#else
    (void)b;
    (void)size;
#endif
}

int mwr_logs_r(const request_rec *r, int module_index, int level)
{
    return APLOG_R_MODULE_IS_LEVEL(r, module_index, level);
}

int mwr_logs_s(const server_rec *s, int module_index, int level)
{
    return APLOG_MODULE_IS_LEVEL(s, module_index, level);
}

void *mwr_module_config(const ap_conf_vector_t *v, const module *m)
{
    return ap_get_module_config(v, m);
}

int mwr_module_magic_major(void)
{
    return MODULE_MAGIC_NUMBER_MAJOR;
}

int mwr_module_magic_minor(void)
{
    return MODULE_MAGIC_NUMBER_MINOR;
}

int mwr_enable_sendfile(request_rec *r)
{
    core_dir_config *d = ap_get_core_module_config(r->per_dir_config);
    return d->enable_sendfile == ENABLE_SENDFILE_ON;
}

int mwr_rejects_path_info(const request_rec *r)
{
    return r->used_path_info == AP_REQ_REJECT_PATH_INFO;
}

int mwr_cgi_passes_authorization(request_rec *r)
{
    core_dir_config *d = ap_get_core_module_config(r->per_dir_config);
    return d->cgi_pass_auth == AP_CGI_PASS_AUTH_ON;
}

unsigned int mwr_unsent(int fd)
{
    int n = 0;
    return ioctl(fd, SIOCOUTQ, &n) == 0 && n > 0 ? (unsigned int)n : 0;
}

int mwr_register_log_item(apr_pool_t *p, const char *tag, mwr_log_item item)
{
    APR_OPTIONAL_FN_TYPE(ap_register_log_handler) *reg = APR_RETRIEVE_OPTIONAL_FN(ap_register_log_handler);
    if (!reg)
        return 0;
    reg(p, (char *)tag, item, 0);
    return 1;
}
