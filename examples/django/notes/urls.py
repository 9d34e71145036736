from django.urls import path

from . import views

urlpatterns = [
    path("", views.index, name="index"),
    path("attachment/<int:pk>/", views.attachment, name="attachment"),
]
