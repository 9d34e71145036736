"""A Django project in one file, with the same pages."""

import hashlib
import os
import sys

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse
from django.urls import path, re_path
from django.views.static import serve

HERE = os.path.dirname(os.path.abspath(__file__))

settings.configure(
    SECRET_KEY="only for tests", ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, DEBUG=False,
    INSTALLED_APPS=["django.contrib.sessions"],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware", "django.middleware.common.CommonMiddleware"],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    LOGGING={"version": 1, "disable_existing_loggers": False},
)
# the script is the URL configuration; it must be importable under its own name
sys.modules.setdefault(__name__, sys.modules.get(__name__) or sys.modules["__main__"])


def index(request):
    return HttpResponse("django index")


def form(request):
    return JsonResponse({"name": request.POST["name"], "tags": request.POST.getlist("tag"), "query": request.GET.get("q")})


def count(request):
    request.session["n"] = request.session.get("n", 0) + 1
    return HttpResponse(str(request.session["n"]))


def upload(request):
    f = request.FILES["file"]
    h = hashlib.sha256()
    for chunk in f.chunks():
        h.update(chunk)
    return JsonResponse({"name": f.name, "size": f.size, "sha": h.hexdigest()})


def json(request):
    import json as j

    return JsonResponse(j.loads(request.body))


def go(request):
    return HttpResponseRedirect("/django/")


def stream(request):
    return StreamingHttpResponse((f"{i}\n" for i in range(1000)), content_type="text/plain")


urlpatterns = [
    path("", index), path("form", form), path("count", count), path("upload", upload), path("json", json),
    path("redirect", go), path("stream", stream),
    re_path(r"^static/(?P<path>.*)$", serve, {"document_root": os.path.join(HERE, "static")}),
]
django.setup()
application = get_wsgi_application()
