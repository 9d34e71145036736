/* What bindgen cannot express: nginx's macros and inline functions, and what differs between its versions. No logic, no
 * allocation. Also what bindgen reads. */
#ifndef MWR_NGINX_SHIM_H
#define MWR_NGINX_SHIM_H

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_event_connect.h>
#include <ngx_event_pipe.h>
#include <ngx_http.h>

/* NGX_MODULE_SIGNATURE is made of many literals, which bindgen does not join. */
extern const char mwr_signature[];

/* Default directory of temporary files, NGX_HTTP_UWSGI_TEMP_PATH. */
extern const char mwr_uwsgi_temp_path[];

/* ngx_log_error with one piece of text; nothing is formatted beyond it. */
void mwr_log(ngx_log_t *log, ngx_uint_t level, const char *text, size_t len);
/* ngx_conf_log_error at NGX_LOG_EMERG. */
void mwr_conf_error(ngx_conf_t *cf, const char *text, size_t len);
/* ngx_add_timer, ngx_del_timer */
void mwr_add_timer(ngx_event_t *ev, ngx_msec_t ms);
void mwr_del_timer(ngx_event_t *ev);
/* ngx_post_event to ngx_posted_events, ngx_delete_posted_event */
void mwr_post_event(ngx_event_t *ev);
void mwr_unpost_event(ngx_event_t *ev);
/* ngx_add_conn, or the two events where the event module has no add_conn. */
ngx_int_t mwr_add_conn(ngx_connection_t *c);
/* ngx_add_event of a read or write event, edge-triggered where that exists. */
ngx_int_t mwr_add_read(ngx_event_t *ev);
ngx_int_t mwr_add_write(ngx_event_t *ev);
/* ngx_atomic_fetch_add(ngx_connection_counter, 1) */
ngx_atomic_uint_t mwr_connection_number(void);
/* Seconds since the epoch at the request's start and milliseconds, in microseconds. */
uint64_t mwr_request_start(const ngx_http_request_t *r);
/* The client came over TLS. */
int mwr_is_tls(const ngx_http_request_t *r);
/* A TLS connection ends without close_notify; another one is left as it is. */
void mwr_no_goodbye(ngx_http_request_t *r);
/* ngx_http_conf_get_module_main_conf and its like by module */
void *mwr_main_conf(ngx_conf_t *cf, ngx_module_t *m);
void *mwr_loc_conf(ngx_http_request_t *r, ngx_module_t *m);
void *mwr_main_conf_of(ngx_http_request_t *r, ngx_module_t *m);
void *mwr_cycle_main_conf(ngx_cycle_t *cycle, ngx_module_t *m);
/* A module's configuration in the core's own array. */
void *mwr_core_conf(ngx_cycle_t *cycle, ngx_module_t *m);
/* ngx_current_msec */
ngx_msec_t mwr_now(void);
/* The response is stored: by the cache or by wsgi_store. */
int mwr_is_stored(const ngx_http_upstream_t *u);
/* ngx_inet_get_port with NULL allowed. */
unsigned mwr_port(struct sockaddr *sa);
/* The setter of limit_rate, which is a size or a complex value by release. */
char *mwr_set_limit_rate(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
/* Prepares the reset that ngx_http_upstream_connect does for a request that is sent again. */
void mwr_force_reinit(ngx_http_upstream_t *u);
/* ngx_handle_write_event: needed where events are not edge-triggered. */
ngx_int_t mwr_watch_write(ngx_event_t *ev);
/* ngx_free_chain */
void mwr_free_chain(ngx_pool_t *pool, ngx_chain_t *cl);

#endif
