"""Layouts of videos on disk: video files, folders of frames, a zip of frames."""
