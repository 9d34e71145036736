#include "shim.h"

const char mwr_signature[] = NGX_MODULE_SIGNATURE;
const char mwr_uwsgi_temp_path[] = NGX_HTTP_UWSGI_TEMP_PATH;

void mwr_log(ngx_log_t *log, ngx_uint_t level, const char *text, size_t len)
{
    ngx_uint_t own = log->log_level;

    /* The caller has decided that it is written; nginx calls its modules from one thread. */
    if (own < level) {
        log->log_level = level;
    }
    ngx_log_error(level, log, 0, "%*s", len, text);
    log->log_level = own;
}

void mwr_conf_error(ngx_conf_t *cf, const char *text, size_t len)
{
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "%*s", len, text);
}

void mwr_add_timer(ngx_event_t *ev, ngx_msec_t ms)
{
    ngx_add_timer(ev, ms);
}

void mwr_del_timer(ngx_event_t *ev)
{
    if (ev->timer_set) {
        ngx_del_timer(ev);
    }
}

void mwr_post_event(ngx_event_t *ev)
{
    ngx_post_event(ev, &ngx_posted_events);
}

void mwr_unpost_event(ngx_event_t *ev)
{
    if (ev->posted) {
        ngx_delete_posted_event(ev);
    }
}

ngx_int_t mwr_add_conn(ngx_connection_t *c)
{
    ngx_int_t event = (ngx_event_flags & NGX_USE_CLEAR_EVENT) ? NGX_CLEAR_EVENT : NGX_LEVEL_EVENT;

    if (ngx_add_conn) {
        return ngx_add_conn(c);
    }
    return ngx_add_event(c->read, NGX_READ_EVENT, event);
}

ngx_int_t mwr_add_read(ngx_event_t *ev)
{
    return ngx_handle_read_event(ev, 0);
}

ngx_int_t mwr_add_write(ngx_event_t *ev)
{
    return ngx_handle_write_event(ev, 0);
}

ngx_atomic_uint_t mwr_connection_number(void)
{
    return ngx_atomic_fetch_add(ngx_connection_counter, 1);
}

uint64_t mwr_request_start(const ngx_http_request_t *r)
{
    return (uint64_t) r->start_sec * 1000000 + (uint64_t) r->start_msec * 1000;
}

int mwr_is_tls(const ngx_http_request_t *r)
{
#if (NGX_HTTP_SSL)
    return r->connection->ssl != NULL;
#else
    return 0;
#endif
}

void mwr_no_goodbye(ngx_http_request_t *r)
{
#if (NGX_HTTP_SSL)
    if (r->connection->ssl) {
        r->connection->ssl->no_send_shutdown = 1;
    }
#endif
}

void *mwr_main_conf(ngx_conf_t *cf, ngx_module_t *m)
{
    return ((ngx_http_conf_ctx_t *) cf->ctx)->main_conf[m->ctx_index];
}

void *mwr_loc_conf(ngx_http_request_t *r, ngx_module_t *m)
{
    return r->loc_conf[m->ctx_index];
}

void *mwr_main_conf_of(ngx_http_request_t *r, ngx_module_t *m)
{
    return r->main_conf[m->ctx_index];
}

void *mwr_cycle_main_conf(ngx_cycle_t *cycle, ngx_module_t *m)
{
    ngx_http_conf_ctx_t *ctx = (ngx_http_conf_ctx_t *) cycle->conf_ctx[ngx_http_module.index];

    return ctx ? ctx->main_conf[m->ctx_index] : NULL;
}

void *mwr_core_conf(ngx_cycle_t *cycle, ngx_module_t *m)
{
    return cycle->conf_ctx[m->index];
}

ngx_msec_t mwr_now(void)
{
    return ngx_current_msec;
}

int mwr_is_stored(const ngx_http_upstream_t *u)
{
    return u->cacheable || u->store;
}

unsigned mwr_port(struct sockaddr *sa)
{
    return sa ? ngx_inet_get_port(sa) : 0;
}

char *mwr_set_limit_rate(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    const ngx_http_upstream_conf_t *c = NULL;

    return _Generic(c->limit_rate, size_t: ngx_conf_set_size_slot, default: ngx_http_set_complex_value_size_slot)(
        cf, cmd, conf);
}

void mwr_force_reinit(ngx_http_upstream_t *u)
{
    u->request_sent = 1;
}

ngx_int_t mwr_watch_write(ngx_event_t *ev)
{
    return ngx_handle_write_event(ev, 0);
}

void mwr_free_chain(ngx_pool_t *pool, ngx_chain_t *cl)
{
    ngx_free_chain(pool, cl);
}
