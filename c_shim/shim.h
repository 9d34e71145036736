/* Only what bindgen cannot express: macros. No logic, no allocation. */
#ifndef MWR_SHIM_H
#define MWR_SHIM_H

#include "httpd.h"
#include "http_config.h"
#include "http_connection.h"
#include "http_core.h"
#include "http_log.h"
#include "http_main.h"
#include "http_protocol.h"
#include "http_request.h"
#include "ap_mpm.h"
#include "ap_regex.h"
#include "mpm_common.h"
#include "unixd.h"
#include "util_filter.h"
#include "util_script.h"
#include "util_time.h"
#include "apr_buckets.h"
#include "apr_portable.h"
#include "apr_strings.h"
#include "apu_version.h"
#include "mod_log_config.h"

/* APR_BRIGADE_INSERT_TAIL */
void mwr_insert_tail(apr_bucket_brigade *bb, apr_bucket *b);
/* APR_BRIGADE_EMPTY */
int mwr_brigade_empty(apr_bucket_brigade *bb);
/* Next bucket of a brigade after b (first for NULL), NULL at its end: APR_BRIGADE_FIRST, APR_BUCKET_NEXT. */
apr_bucket *mwr_next(apr_bucket_brigade *bb, apr_bucket *b);
/* APR_BUCKET_IS_EOS, APR_BUCKET_IS_METADATA */
int mwr_is_eos(const apr_bucket *b);
int mwr_is_metadata(const apr_bucket *b);
/* apr_bucket_read */
apr_status_t mwr_bucket_read(apr_bucket *b, const char **data, apr_size_t *len);
/* apr_bucket_file_set_buf_size, which APR-util has from 1.6 on */
void mwr_file_read_size(apr_bucket *b, apr_size_t size);
/* The level a module's messages are logged at for this request or server: APLOG_R_IS_LEVEL, APLOG_IS_LEVEL */
int mwr_logs_r(const request_rec *r, int module_index, int level);
int mwr_logs_s(const server_rec *s, int module_index, int level);
/* ap_get_module_config is a macro or a function by release; this is the slot. */
void *mwr_module_config(const ap_conf_vector_t *v, const module *m);
/* STANDARD20_MODULE_STUFF's constants. */
int mwr_module_magic_major(void);
int mwr_module_magic_minor(void);
/* EnableSendfile of the request's place. */
int mwr_enable_sendfile(request_rec *r);
/* AcceptPathInfo: 1 = path info is refused. */
int mwr_rejects_path_info(const request_rec *r);
/* CGIPassAuth of the request's place. */
int mwr_cgi_passes_authorization(request_rec *r);
/* SIOCOUTQ: bytes that a socket holds and its peer has not acknowledged; 0 = the kernel does not say. */
unsigned int mwr_unsent(int fd);
/* Gives mod_log_config an item for its formats, of the request that was served; 0 where that module is not loaded. */
typedef const char *(*mwr_log_item)(request_rec *r, char *argument);
int mwr_register_log_item(apr_pool_t *p, const char *tag, mwr_log_item item);

#endif
