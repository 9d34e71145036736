"""The list with its form, and the attached files."""

from django.http import FileResponse
from django.shortcuts import get_object_or_404, redirect, render

from .forms import NoteForm
from .models import Note


def index(request):
    form = NoteForm(request.POST or None, request.FILES or None)
    if request.method == "POST" and form.is_valid():
        form.save()
        return redirect("index")
    return render(request, "notes/index.html", {"form": form, "notes": Note.objects.all()[:50]})


def attachment(request, pk):
    note = get_object_or_404(Note.objects.exclude(attachment=""), pk=pk)
    # Always as a download: what others have uploaded must not run as a page of this site.
    return FileResponse(note.attachment.open("rb"), as_attachment=True)
