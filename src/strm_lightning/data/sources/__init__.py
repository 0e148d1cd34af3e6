"""Layouts of videos on disk: video files, folders of frames, or a zip of frames."""
