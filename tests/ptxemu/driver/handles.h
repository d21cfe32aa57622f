/* Handles of the driver API.
 *
 * A handle is a number that is never given out twice and never points at anything, so that a destroyed handle, or one
 * of another kind, is found out (CUDA_ERROR_INVALID_HANDLE) where a pointer would crash. */
#ifndef PTXEMU_DRIVER_HANDLES_H
#define PTXEMU_DRIVER_HANDLES_H

#include <cstdint>
#include <map>
#include <memory>

namespace ptxemu::driver
{

uintptr_t fresh_handle();

template <class Handle, class T>
class Table
{
  public:
    Handle add(std::shared_ptr<T> object)
    {
        Handle h = reinterpret_cast<Handle>(fresh_handle());
        object->handle = h;
        objects_.emplace(h, std::move(object));
        return h;
    }
    std::shared_ptr<T> find(Handle h) const
    {
        auto it = objects_.find(h);
        return it == objects_.end() ? nullptr : it->second;
    }
    bool remove(Handle h) { return objects_.erase(h) != 0; }
    template <class Predicate>
    void remove_if(Predicate &&p)
    {
        for (auto it = objects_.begin(); it != objects_.end();)
            it = p(*it->second) ? objects_.erase(it) : std::next(it);
    }
    template <class F>
    void each(F &&f) const
    {
        for (auto &o : objects_)
            f(*o.second);
    }
    size_t size() const { return objects_.size(); }
    void clear() { objects_.clear(); }

  private:
    std::map<Handle, std::shared_ptr<T>> objects_; /* in order of creation: lists of leaks read well */
};

} // namespace ptxemu::driver

#endif
